"""The files that a run's settings name, by their content: prompts, templates, reward functions, model folders."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egrpo.paths import PACKAGE_PREFIX, resolve
from egrpo.provenance import write_json

FILE = "inputs.json"  # in the run's folder
MODEL = ("path", "clip")  # last parts of keys that name a model's folder
SMALL = 64 * 2**20  # bytes up to which a file of a model is hashed whole; of larger ones size, start and end are
ENDS = 2**20


def input_hashes(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> SHA-256, in hex, of the file or model folder that the setting names.

    Args:
        settings: Flat, as `decisive_settings` gives them.
    """
    found = {}
    for key, value in settings.items():
        path = _named_path(key, value)
        if path is not None:
            found[key] = _folder_hash(path) if path.is_dir() else _file_hash(path)
    return found


def read_inputs(folder: Path) -> dict[str, str]:
    """What the run in this folder began with; empty where it left no such record, as older versions did."""
    try:
        return dict(json.loads((folder / FILE).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def save_inputs(folder: Path, hashes: Mapping[str, str]) -> None:
    """Keeps them next to config.yaml."""
    write_json(folder / FILE, dict(hashes))


def _named_path(key: str, value: Any) -> Path | None:
    """The file that a value names, or a model's folder; None for any other value."""
    name = key.rpartition(".")[2]
    if not isinstance(value, str) or not value or "\n" in value or len(value) > 4096:
        return None
    if name == "function":
        return _source(value)
    try:
        path = resolve(value)
        if path.is_file() and (value.startswith(PACKAGE_PREFIX) or "." in value or "/" in value):
            return path
        return path if name in MODEL and path.is_dir() else None
    except OSError:  # too long a name, or a folder that may not be read: no file of ours
        return None


def _source(function: str) -> Path | None:
    """The file that holds a reward function, `path/to/file.py:score` or `package.module.score`."""
    path, is_file, _ = function.rpartition(".py:")
    if is_file:
        file = Path(path + ".py").expanduser()
        return file if file.is_file() else None
    parts = function.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            return Path(spec.origin)
    return None


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_hash(folder: Path) -> str:
    """Over the names and contents of a model's files; of weights above `SMALL` size, first and last MiB."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        if size <= SMALL:
            digest.update(_file_hash(path).encode())
            continue
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(-ENDS, 2)
            digest.update(file.read())
    return digest.hexdigest()
