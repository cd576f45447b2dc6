"""GenEval's rules: from detected objects to right or wrong. Pure functions of plain numbers.

Source: the official `evaluate_images.py` (github.com/djghosh13/geneval), in words of its own: all clauses of `include`
must hold and none of `exclude`; of each class only the `count` surest objects are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITION_MARGIN = 0.1  # of the sum of both objects' sizes: offsets below it say nothing
CLEAR = 0.5  # share of the distance that an offset needs to count as a direction
NEXT_TO_NOTHING = 1e-3  # pixels


@dataclass(frozen=True)
class Found:
    """One detected object: corners (left, top, right, bottom) in pixels, and its score."""

    box: Sequence[float]
    score: float


ColorsOf = Callable[[Sequence[Found], str], Sequence[str]]  # objects and their class -> one of COLORS each


def is_right(objects: Mapping[str, Sequence[Found]], metadata: Mapping[str, Any], colors_of: ColorsOf) -> bool:
    """Whether an image shows what its metadata asks for.

    Args:
        objects: Class -> what was found of it, surest first.
        metadata: `include`: clauses with class, count, and maybe color and position [relation, index of an earlier
            clause]; `exclude`: clauses with class and count.
        colors_of: Names the colours of objects; asked only where a clause has a colour.
    """
    groups: list[Sequence[Found] | None] = []  # what each clause of `include` matched
    for clause in metadata.get("include", []):
        groups.append(_matched(objects, clause, groups, colors_of))
    surplus = any(len(objects.get(c["class"], ())) >= c["count"] for c in metadata.get("exclude", []))
    return not surplus and None not in groups


def _matched(
    objects: Mapping[str, Sequence[Found]],
    clause: Mapping[str, Any],
    groups: Sequence[Sequence[Found] | None],
    colors_of: ColorsOf,
) -> Sequence[Found] | None:
    """The objects that a clause asks for, None where it does not hold."""
    count, name = clause["count"], clause["class"]
    found = list(objects.get(name, ()))[:count]
    if len(found) < count:
        return None
    if "color" in clause and list(colors_of(found, name)).count(clause["color"]) < count:
        return None
    if "position" in clause:
        relation, other = clause["position"]
        targets = groups[other]
        if targets is None or not all(relation in relations(a, b) for a in found for b in targets):
            return None
    return found


def relations(first: Found, second: Found) -> set[str]:
    """Where `first` lies from `second`: some of "left of", "right of", "above", "below", or nothing clear."""
    offset, beyond = [], []
    for axis in (0, 1):
        a, b = ((f.box[axis], f.box[axis + 2]) for f in (first, second))
        distance = sum(a) / 2 - sum(b) / 2
        margin = POSITION_MARGIN * (abs(a[1] - a[0]) + abs(b[1] - b[0]))
        offset.append(distance)
        beyond.append(math.copysign(max(abs(distance) - margin, 0), distance))
    if all(abs(value) < NEXT_TO_NOTHING for value in beyond):
        return set()
    x, y = (value / math.hypot(*offset) for value in beyond)
    directions = {"left of": x < -CLEAR, "right of": x > CLEAR, "above": y < -CLEAR, "below": y > CLEAR}
    return {name for name, holds in directions.items() if holds}
