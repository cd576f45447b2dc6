"""Reading the files that other people's evaluators leave, with a sentence for each that cannot be used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.base.lines import read_lines


def json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON file that holds a list of objects.

    Raises:
        UserError: it holds something else, or half of it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise _unusable(path, f"cannot be read ({error}), perhaps it is half-written") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise _unusable(path, "is no list of objects")
    return content


def json_lines(path: Path) -> list[dict[str, Any]]:
    """A file with one JSON object a line; blank lines are skipped.

    Raises:
        UserError: a line is something else; the message names the first.
    """
    rows = []
    try:
        lines = read_lines(path)
    except (ValueError, OSError) as error:
        raise _unusable(path, f"cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _unusable(path, f"line {number} is no JSON ({error}), perhaps it is half-written") from error
        if not isinstance(row, dict):
            raise _unusable(path, f"line {number} is no object")
        rows.append(row)
    return rows


def numbered_scores(path: Path, count: int, lowest: float = 0.0) -> list[float]:
    """Scores of images 0..count-1 from [{"question_id": 0, "answer": "0.5"}, ...] in any order (T2I-CompBench).

    Args:
        path: The file.
        count: How many images there are.
        lowest: The lowest score there can be: 0, or -1 for a cosine.

    Raises:
        UserError: an image has no score or two, there are scores of other images, or one is outside lowest..1.
    """
    found: dict[int, float] = {}
    for row in json_list(path):
        number, value = row.get("question_id"), number_of(row.get("answer"))
        if not isinstance(number, int) or value is None:
            raise _unusable(path, f"{row} has no whole question_id with a number as answer")
        if not lowest - 1e-6 <= value <= 1 + 1e-6:
            raise _unusable(path, f"image {number} has the score {value}, outside {lowest:g}..1")
        if number in found:
            raise _unusable(path, f"image {number} is scored twice")
        found[number] = value
    require_all(path, found, range(count), "image")
    return [found[number] for number in range(count)]


def require_all(path: Path, found: Iterable[Any], wanted: Iterable[Any], what: str) -> None:
    """Raises a UserError that says which of the `wanted` are not among the `found`, or are too many."""
    found, wanted = set(found), set(wanted)
    lacking, surplus = wanted - found, found - wanted
    if lacking:
        first = min(lacking, key=lambda x: (str(type(x)), x))
        fault = f"scores {len(wanted) - len(lacking)} of {len(wanted)} {what}s, the first without is {first}"
        raise _unusable(path, f"{fault}: it may be half-written, or of another export")
    if surplus:
        first = min(surplus, key=lambda x: (str(type(x)), x))
        raise _unusable(path, f"scores {len(surplus)} {what}s that the prompts do not have, the first {first}")


def number_of(value: Any) -> float | None:
    """A finite number, or text that is one; None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def first_of(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _unusable(path: Path, fault: str) -> UserError:
    return UserError(f"the result file {path} {fault}: run the official evaluator again")
