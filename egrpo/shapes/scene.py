"""Scenes: a few shapes on a 3 x 3 grid, and what a prompt asks of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple")
TEXTURES = ("plain", "striped")
GRID = 3  # cells a side; cells are numbered in raster order
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)

# Direction (dx, dy) in which the first object lies from the second; "next to" has none.
LOCALITIES: dict[str, tuple[int, int] | None] = {
    "above": (0, -1),
    "on top of": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "on the left of": (-1, 0),
    "right of": (1, 0),
    "on the right of": (1, 0),
    "next to": None,
}


@dataclass(frozen=True)
class Thing:
    """One drawn shape. `shape` is None where the oracle sees something that it cannot name."""

    shape: str | None
    color: str
    texture: str
    x: float  # centre, in cells from the left edge
    y: float  # centre, in cells from the top edge


@dataclass(frozen=True)
class Part:
    """`count` things of one description; None leaves an attribute open."""

    shape: str | None = None
    color: str | None = None
    texture: str | None = None
    count: int = 1

    def share_right(self, thing: Thing) -> float:
        """Share of the described attributes that `thing` has, 0..1 (1 where nothing is described)."""
        asked = [(getattr(self, name), getattr(thing, name)) for name in ("shape", "color", "texture")]
        asked = [(want, have) for want, have in asked if want is not None]
        return sum(want == have for want, have in asked) / len(asked) if asked else 1.0


@dataclass(frozen=True)
class Spec:
    """What a prompt asks: parts, at most one spatial relation between the first two, at most one bond among all."""

    parts: tuple[Part, ...]
    locality: str | None = None  # part 0 stands `locality` part 1
    bond: tuple[str, str] | None = None  # ("color" | "texture" | "shape", "same" | "different")

    @property
    def slots(self) -> list[Part]:
        """One part for each single thing asked for."""
        return [part for part in self.parts for _ in range(part.count)]

    def to_dict(self) -> dict[str, Any]:
        parts = [{k: v for k, v in vars(part).items() if v is not None} for part in self.parts]
        row: dict[str, Any] = {"parts": parts}
        if self.locality:
            row["locality"] = self.locality
        if self.bond:
            row["bond"] = list(self.bond)
        return row

    @staticmethod
    def from_dict(row: dict[str, Any]) -> Spec:
        """Inverse of `to_dict`; raises KeyError or TypeError where `row` is not such a mapping."""
        parts = tuple(Part(**part) for part in row["parts"])
        locality, bond = row.get("locality"), row.get("bond")
        if not parts or locality not in (None, *LOCALITIES):
            raise KeyError("parts" if not parts else locality)
        return Spec(parts, locality, tuple(bond) if bond else None)


def relation_holds(a: Thing, b: Thing, locality: str) -> bool:
    """Whether `a` stands `locality` `b`. A direction must be the larger of the two offsets (as in T2I-CompBench);
    "next to" means neighbouring cells, diagonals included."""
    dx, dy = a.x - b.x, a.y - b.y
    direction = LOCALITIES[locality]
    if direction is None:
        return max(abs(dx), abs(dy)) < 1.5
    along, across = (dx * direction[0], dy) if direction[0] else (dy * direction[1], dx)
    return along > abs(across) + 0.5


def bond_holds(things: list[Thing], bond: tuple[str, str]) -> bool:
    """Whether all things share the bond's attribute ("same") or no two of them do ("different")."""
    attribute, kind = bond
    values = {getattr(thing, attribute) for thing in things}
    return len(values) == (1 if kind == "same" else len(things))


def judge(things: list[Thing], spec: Spec) -> float:
    """Score of a scene in 0..1; 1 only where everything asked for is there and nothing else (GenEval-style).

    The mean, over the things, the relation and the bond that are asked for, of the share that is right under the best
    assignment of things to slots; each surplus thing takes one such share away.
    """
    slots = spec.slots
    extras = (spec.locality is not None) + (spec.bond is not None)
    surplus = max(0, len(things) - len(slots))
    candidates: list[Thing | None] = [*things, *[None] * max(0, len(slots) - len(things))]
    if len(candidates) > 7:  # far too many things: no assignment can outweigh the surplus
        return 0.0
    best = 0.0
    for chosen in permutations(candidates, len(slots)):
        credit = sum(slot.share_right(t) for slot, t in zip(slots, chosen, strict=True) if t is not None)
        present = [t for t in chosen if t is not None]
        if len(present) == len(slots):
            if spec.locality is not None:
                credit += relation_holds(present[0], present[spec.parts[0].count], spec.locality)
            if spec.bond is not None:
                credit += bond_holds(present, spec.bond)
        best = max(best, credit)
    return max(0.0, best - surplus) / (len(slots) + extras)
