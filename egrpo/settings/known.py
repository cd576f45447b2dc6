"""The settings that a command's yaml files hold: names, and the values that stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from egrpo.paths import config_dir

PACKAGE = re.compile(r"^# @package (\S+)", re.MULTILINE)


@dataclass
class Known:
    """A key: what may lie below it, and the values that yaml files give it.

    Args:
        below: Key -> what is known of it, for a mapping.
        values: All that stand in some yaml file, where it is none.
        groups: Names of the command's groups, at its root.
    """

    below: dict[str, Known] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)

    def add(self, content: Any) -> None:
        """Adds what one yaml file holds at this place."""
        if not isinstance(content, dict):
            self.values.append(content)
            return
        for key, value in content.items():
            self.below.setdefault(str(key), Known()).add(value)

    def at(self, path: str) -> Known:
        """What lies at a dotted path; it is made where there is nothing yet."""
        node = self
        for key in filter(None, path.split(".")):
            node = node.below.setdefault(key, Known())
        return node

    def paths(self, prefix: str = "") -> Iterator[str]:
        """Every dotted key."""
        for key, node in self.below.items():
            yield prefix + key
            yield from node.paths(f"{prefix}{key}.")


@cache
def known_settings(root: str) -> Known | None:
    """The keys of a command, over all choices of all its groups; None = this project has no such root.

    Args:
        root: Path of the root's yaml within `conf`, without its ending: "train", "collect/collect".
    """
    conf = Path(config_dir())
    if not (conf / f"{root}.yaml").is_file():
        return None
    known = Known()
    _add_root(known, conf, root)
    return known


def _add_root(known: Known, conf: Path, root: str) -> None:
    content = _read(conf / f"{root}.yaml")
    for entry in content.pop("defaults", []):
        if isinstance(entry, str):
            if entry != "_self_":
                _add_root(known, conf, entry)
            continue
        group = next(iter(entry)).split()[-1].partition("@")[0].strip("/")
        known.groups.add(group)
        for path in sorted((conf / group).rglob("*.yaml")):
            _add_choice(known, conf, path)
    content.pop("hydra", None)
    known.add(content)


def _add_choice(known: Known, conf: Path, path: Path) -> None:
    """One choice of a group, at the place that its header names, else that of its folder."""
    content = _read(path)
    content.pop("hydra", None)
    header = PACKAGE.search(path.read_text())
    place = header[1] if header else ".".join(path.parent.relative_to(conf).parts)
    node = known.at("" if place == "_global_" else place.removeprefix("_global_."))
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict) and "@" in (group := next(iter(entry))):
            node.at(group.partition("@")[2])  # /kind@hps.convert
    node.add(content)


def _read(path: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(path))
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}
