"""The folders that commands write into: what somebody else put there is not written over."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from egrpo.base.errors import UserError
from egrpo.base.files import writing

MARK = ".egrpo"  # in a target: which command made it
SHOWN = 3


def claim_target(
    folder: Path, key: str, command: str, *, names: Collection[str] | None = None, signs: Sequence[str] = ()
) -> None:
    """Makes the folder this command's, or recognises it as such.

    Args:
        folder: Is made where it is missing.
        key: The setting that names it, for messages.
        command: "export", ...; kept in the folder.
        names: What the command writes, where it minds nothing else in the folder; None = any file may be in its way.
        signs: Files by which a target of an earlier version, without a mark, is recognised.

    Raises:
        UserError: the folder holds files that this command did not make, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}={folder} is a file: name a folder")
    mark = folder / MARK
    if not mark.is_file() and folder.is_dir() and not any((folder / sign).is_file() for sign in signs):
        found = sorted(
            p.name for p in folder.iterdir() if not p.name.startswith(".") and (not names or p.name in names)
        )
        if found:
            raise UserError(_foreign(folder, key, command, found))
    if mark.is_file() and (maker := _maker(mark)) != command:
        raise UserError(f"{key}={folder} was made by egrpo.{maker}: name another folder")
    with writing(mark):
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"command": command}) + "\n")


def claim_file(path: Path, key: str, needed: str) -> None:
    """The same for a single JSON file, which is this command's where it has the key `needed`.

    Raises:
        UserError: there is another file, or a folder.
    """
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or needed not in content:
        raise UserError(f"{key}={path} is there already and was not made by this command: name another file")


def _maker(mark: Path) -> str:
    try:
        return str(json.loads(mark.read_text())["command"])
    except (ValueError, KeyError, TypeError):
        return "another command"


def _foreign(folder: Path, key: str, command: str, found: Sequence[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{key}={folder} holds files that egrpo.{command} did not make ({', '.join(found[:SHOWN])}{more}) and would "
        "write over: name an empty or new folder"
    )
