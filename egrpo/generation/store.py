"""The folder of a generation: images, `generations.jsonl`, and `manifest.json` that says what they were drawn with.

A row is appended when its image is in place, so what a killed run leaves is true, and the next one goes on from it.
Several processes may share a folder: they write under a lock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.base.files import LOCK, hold, write_whole, writing
from egrpo.generation.drawing import Picture
from egrpo.generation.png import is_whole
from egrpo.generation.requests import Request

log = logging.getLogger(__name__)

ROWS, MANIFEST = "generations.jsonl", "manifest.json"
Row = dict[str, Any]


class Store:
    """Args: `folder`, which is made, and `requests`, the images that are to be in it."""

    def __init__(self, folder: Path, requests: Sequence[Request]) -> None:
        self.folder, self.requests = folder, requests
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def claim(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest of the folder: this one, or that of an earlier run with the same settings.

        Raises:
            UserError: The folder holds images of other settings.
        """
        path = self.folder / MANIFEST
        with self._locked():
            if not path.is_file():
                write_whole(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
                return manifest
            before = _read_manifest(path)
        old, new = before["settings"], json.loads(json.dumps(manifest["settings"]))
        if changed := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
            told = ", ".join(f"{name}={_short(new.get(name))} (was {_short(old.get(name))})" for name in changed)
            raise UserError(
                f"{self.folder} holds images that were drawn with other settings: {told}; draw into another folder "
                "(hydra.run.dir=...), or with the settings of before"
            )
        for name in ("versions", "device"):
            if before.get(name) != manifest[name]:
                told = f"{name} {manifest[name]} (was {before.get(name)})"
                log.warning("this run goes on with %s: its images may differ in the last digit", told)
        return before

    def holds(self, stamp: str | None, versions: str) -> bool:
        """Whether all images are there, by the request of this stamp: then no policy is needed to know that."""
        path = self.folder / MANIFEST
        if stamp is None or not path.is_file():
            return False
        with self._locked():
            manifest = _read_manifest(path)
        if (manifest.get("request"), manifest.get("versions")) != (stamp, versions):
            return False
        done = self.done()
        return all(request.key in done for request in self.requests)

    def done(self) -> dict[tuple[str, int], Row]:
        """Rows of images that are there whole, by prompt and index. A line that was cut short is taken away."""
        with self._locked():
            _mend(self.folder / ROWS)
            rows = _read_rows(self.folder / ROWS)
        return {key: row for key, row in rows.items() if is_whole(self.folder / Request(*key).file)}

    def add(self, requests: Sequence[Request], pictures: Sequence[Picture]) -> dict[tuple[str, int], Row]:
        """Puts images in place, then their rows; gives the rows."""
        added = {}
        for request, picture in zip(requests, pictures, strict=True):
            write_whole(self.folder / request.file, picture.png())
            added[request.key] = _row(request, picture.seed, picture.plan, picture.truncated)
            rows = self.folder / ROWS
            with self._locked(), writing(rows), rows.open("ab") as file:
                file.write(_line(added[request.key]))
        return added

    def finish(self) -> bool:
        """Puts the rows in the order of the requests and tells so, once all are there; rows of others follow."""
        with self._locked():
            rows = _read_rows(self.folder / ROWS)
            if any(request.key not in rows for request in self.requests):
                return False
            ordered = []
            for request in self.requests:
                found = rows.pop(request.key)
                ordered.append(_row(request, found["seed"], found["plan"], found["truncated"]))
            content = b"".join(_line(row) for row in [*ordered, *rows.values()])
            if content != (self.folder / ROWS).read_bytes():
                write_whole(self.folder / ROWS, content)
        return True

    def put(self, path: Path, content: bytes) -> None:
        """Writes a file that other processes may write too."""
        with self._locked():
            write_whole(path, content)

    def tidy(self) -> None:
        """Once all images are there, removes files that killed processes left half written."""
        with self._locked():
            rows = _read_rows(self.folder / ROWS)
            if all(request.key in rows for request in self.requests):
                for left in (*self.folder.glob("images/*.part"), *self.folder.glob("sheets/*.part")):
                    left.unlink()

    def _locked(self) -> AbstractContextManager[int]:
        """Others write for moments only."""
        return hold(self.folder, "the images in", name=LOCK, waiting=lambda: None)


def _row(request: Request, seed: int, plan: str, truncated: bool) -> Row:
    about = {"record": request.record} if request.record else {}
    own = {"prompt": request.prompt, "plan": plan, "file": request.file, "seed": seed, "index": request.index}
    return {**own, "truncated": truncated, **about}


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _mend(path: Path) -> None:
    """Takes away what stands after the last end of line: nobody is writing it any more."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("the last line of %s was cut short; its image is drawn again", path)
        with path.open("r+b") as file:
            file.truncate(whole)


def _read_rows(path: Path) -> dict[tuple[str, int], Row]:
    """Rows by prompt and index. A line that is no row counts as absent: its image is drawn again."""
    rows = {}
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            key = (row["prompt"], row["index"])
            if not {"plan", "seed", "truncated"} <= row.keys() or row["file"] != Request(*key).file:
                raise UserError("it is not a row of a generation")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("line %d of %s is left out, and its image drawn again: %s", number, path, error)
            continue
        rows[key] = row
    return rows


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["settings"], dict):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} cannot be read; remove it if the folder's images may be taken for those of this run")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else f"{text[:60]}..."
