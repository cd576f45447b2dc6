"""What is published where, as the yaml files in conf/what tell it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError


class DownloadError(UserError):
    """Something could not be fetched, checked or put in place. The message says what, and what to do."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, or all that a pattern matches (`*` does not cross folders)."""

    path: str
    size: int = 0  # bytes as published, of all matches together; 0 = not known and small
    sha256: str | None = None  # of a file that must be this one; without it what the Hub publishes is compared
    estimated: bool = False  # `size` is derived from the number of weights rather than published
    optional: bool = False  # the repository may lack it

    def matches(self, path: str) -> bool:
        return path.count("/") == self.path.count("/") and fnmatchcase(path, self.path)


@dataclass(frozen=True)
class Source:
    """Files of one repository of the Hub."""

    repo: str
    revision: str
    licence: str
    files: list[Any]  # of HubFile, or mappings of its fields
    folder: str = "."  # where its files lie within the artifact

    def __post_init__(self) -> None:
        files = [f if isinstance(f, HubFile) else HubFile(**f) for f in self.files]
        object.__setattr__(self, "files", files)


@dataclass(frozen=True)
class Artifact:
    """One model directory under the target folder.

    While it is made, `FOLDER.original` holds the files as published and `FOLDER.part` what is being converted; FOLDER
    itself appears at the end, complete.
    """

    title: str
    folder: str  # relative to the target folder
    sources: list[Source]
    kind: str | None = None  # of `python -m egrpo.convert`; None = transformers loads the files as published

    def final(self, target: Path) -> Path:
        return target / self.folder

    def originals(self, target: Path) -> Path:
        return target / f"{self.folder}.original"

    def part(self, target: Path) -> Path:
        return target / f"{self.folder}.part"

    def finished(self, target: Path) -> bool:
        return not lacking(self.final(target))

    @property
    def size(self) -> int:
        """Bytes to fetch, as published."""
        return sum(file.size for source in self.sources for file in source.files)

    @property
    def estimated(self) -> bool:
        return any(file.estimated for source in self.sources for file in source.files)


def lacking(folder: Path) -> list[str]:
    """Files without which transformers loads no model from `folder`: configuration, weights, all shards of an index."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for weights in ("model.safetensors", "pytorch_model.bin"):
        if (folder / weights).is_file():
            return missing
        index = folder / f"{weights}.index.json"
        if index.is_file():
            try:
                shards = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
            except (ValueError, KeyError, TypeError, AttributeError):
                return [*missing, f"a readable {index.name}"]
            return missing + sorted(shard for shard in shards if not (folder / shard).is_file())
    return [*missing, "model.safetensors"]
