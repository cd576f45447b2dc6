"""What the tests of the shapes world share: scenes as plain keys, plans read back, prompts phrased from their spec."""

from __future__ import annotations

import re
from typing import Any

from egrpo.shapes.scene import Thing

Key = tuple[str | None, str, str, int, int]  # shape, colour, texture, column, row

PLACES = {
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "center": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_WHAT = r"(?:a )?(?:(?P<striped{0}>striped) )?(?P<color{0}>[a-z]+) (?P<shape{0}>circle|square|triangle|cross)"
_CLAUSE = re.compile(
    rf"(?:at )?(?P<where1>{_PLACE}):? {_WHAT.format(1)}|{_WHAT.format(2)}(?: at)? (?P<where2>{_PLACE})",
)
_JOINT = re.compile(r"; |, | and | with ")


def keys(things: list[Thing]) -> list[Key]:
    """A scene as a sorted list, so that two scenes compare equal whatever the order of their things."""
    found = [(t.shape, t.color, t.texture, int(t.x), int(t.y)) for t in things]
    return sorted(found, key=str)


def read_plan(plan: str) -> list[Key]:
    """The scene that a plan describes, in any of its wordings, things in the plan's order."""
    scene = []
    for clause in _JOINT.split(plan.strip()):
        found = _CLAUSE.fullmatch(clause)
        assert found, f"cannot read {clause!r} of {plan!r}"
        n = 1 if found["where1"] else 2
        texture = "striped" if found[f"striped{n}"] else "plain"
        scene.append((found[f"shape{n}"], found[f"color{n}"], texture, *PLACES[found[f"where{n}"]]))
    return scene


def wording(plan: str) -> str:
    """Which wording a plan has: its first clause with the words for attributes and places taken out."""
    clause = _JOINT.split(plan.strip())[0]
    clause = re.sub(rf"\b({_PLACE})\b", "WHERE", clause)
    return re.sub(r"(striped )?\b[a-z]+ (circle|square|triangle|cross)\b", "WHAT", clause)


def phrase(part: dict[str, Any]) -> str:
    """What a prompt calls one part of its `scene` (number 1)."""
    return " ".join(part[name] for name in ("texture", "color", "shape") if name in part)
