"""Where a study keeps what it draws. A unit is done when its part of the table is there, and that is written last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egrpo.analysis.work import Unit
from egrpo.base.errors import UserError
from egrpo.base.files import hold, writing
from egrpo.provenance import write_json

alone = hold  # how a study holds its folder
PARTIAL = ".partial"  # end of the name of a file that is being written


def part_path(folder: Path, unit: Unit) -> Path:
    """The rows of the table that a unit gives."""
    return folder / "parts" / unit.setting / f"{unit.prompt_index:05d}.parquet"


def tokens_path(folder: Path, unit: Unit) -> Path:
    """Tokens and their entropies of a unit's images."""
    return folder / "tokens" / unit.setting / f"{unit.prompt_index:05d}.npz"


def image_file(unit: Unit, plan_index: int, image_index: int) -> str:
    """Path of an image, relative to the study's folder."""
    return f"images/{unit.setting}/{unit.prompt_index:05d}/plan{plan_index}_image{image_index}.png"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Inside, a file beside `path` to write; it takes its name when all went well. The folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")  # a killed study's process may still be writing
    try:
        with writing(path):
            yield beside
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def discard_partial(folder: Path) -> None:
    """Removes what a killed study was about to write."""
    for name in ("parts", "tokens", "images"):
        for path in (folder / name).rglob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)


def claim(folder: Path, decisive: Mapping[str, Any]) -> None:
    """Writes down what decides the records of a new study, or compares it with what an earlier start wrote.

    Args:
        folder: Of the study.
        decisive: JSON values by name, nested as may be.

    Raises:
        UserError: the study began with something else.
    """
    path = folder / "manifest.json"
    now = _flat(json.loads(json.dumps(decisive)))
    if not path.is_file():
        write_json(path, now)
        return
    before = json.loads(path.read_text())
    changed = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"the study in {folder} began with other settings ({name}={now.get(name)}, was {before.get(name)}{more}): "
            "go on with those, or give a new study a folder of its own with hydra.run.dir=FOLDER"
        )


def claim_model(folder: Path, setting: str, model_hash: str) -> None:
    """Writes down a setting's weights, or compares them with those that its earlier images were drawn with.

    Raises:
        UserError: they are others.
    """
    path = folder / "models" / f"{setting}.json"
    if path.is_file():
        before = json.loads(path.read_text())["sha256"]
    else:
        before = model_hash
        with whole(path) as beside:
            beside.write_text(json.dumps({"sha256": model_hash}) + "\n")
    if before != model_hash:
        raise UserError(
            f"settings.{setting}: the weights are not those that the images in {folder} were drawn with "
            f"({model_hash[:12]}, was {before[:12]}): bring them back, or give a new study a folder of its own"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of a nested mapping."""
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {name: value for key, child in node.items() for name, value in _flat(child, f"{prefix}{key}.").items()}
