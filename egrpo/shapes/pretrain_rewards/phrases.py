"""Questions about pictures, "striped red circle?", in the words of prompts' `nouns` and `attr_nouns`, and the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from egrpo.shapes.prompts import FIGURES, phrase
from egrpo.shapes.scene import COLORS, SHAPES, TEXTURES, Part, Thing
from egrpo.types import PromptRecord

VALUES = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES}
# What a question names; "figure" is the shape as an adjective, "round figure".
KINDS = (
    ("shape",),
    ("color", "shape"),
    ("figure",),
    ("texture", "shape"),
    ("texture", "color", "shape"),
    (),
)
SHARES = (0.2, 0.25, 0.15, 0.15, 0.22, 0.03)  # of the kinds; "figure?" is nearly always answered by yes


@dataclass(frozen=True)
class Question:
    """A phrase with a question mark, and the truth about one picture."""

    text: str
    answer: bool


def is_shown(part: Part, things: list[Thing]) -> bool:
    """Whether one of the things has all that the part names."""
    return any(part.share_right(thing) == 1 for thing in things)


def wording(part: Part, kind: tuple[str, ...]) -> str:
    return f"{FIGURES[part.shape or '']} figure?" if kind == ("figure",) else f"{phrase(part)}?"


def part_of(thing: Thing, kind: tuple[str, ...]) -> Part:
    """The attributes of the thing that questions of this kind name."""
    names: tuple[str, ...] = ("shape",) if kind == ("figure",) else kind
    return Part(**{name: getattr(thing, name) for name in names})  # type: ignore[arg-type]


def altered(part: Part, rng: np.random.Generator) -> Part:
    """The part with another value of one attribute that it names."""
    names = [name for name in VALUES if getattr(part, name) is not None]
    name = names[rng.integers(len(names))]
    others = [value for value in VALUES[name] if value != getattr(part, name)]
    change: dict[str, Any] = {name: others[rng.integers(len(others))]}
    return replace(part, **change)


def ask(things: list[Thing], rng: np.random.Generator, kind: tuple[str, ...], wanted: bool) -> Question:
    """A question whose answer is `wanted` if that can be had: yes = a thing's own attributes, no = one of them altered.

    Where nothing nameable is shown the answer is no, for "figure?" it is whether anything is shown.
    """
    named = [thing for thing in things if thing.shape is not None]
    if not kind:
        return Question("figure?", bool(things))
    shape, color, texture = (str(rng.choice(values)) for values in VALUES.values())
    anything = Thing(shape, color, texture, 0.5, 0.5)
    part = part_of(named[rng.integers(len(named))] if named else anything, kind)
    for _ in range(20 if named and not wanted else 0):
        other = altered(part, rng)
        if not is_shown(other, things):
            part = other
            break
    return Question(wording(part, kind), is_shown(part, things))


def ask_some(things: list[Thing], count: int, rng: np.random.Generator) -> list[Question]:
    """`count` questions of random kinds, as many yes as no."""
    kinds = rng.choice(len(KINDS), count, p=SHARES)
    return [ask(things, rng, KINDS[kind], i % 2 == 0) for i, kind in enumerate(kinds)]


def asked_by(record: PromptRecord, parts: list[Part], things: list[Thing]) -> list[Question]:
    """The prompt's own `attr_nouns` (else `nouns`) as questions; `parts` is what they stand for."""
    return [
        Question(f"{text}?", is_shown(part, things))
        for text, part in zip(record.attr_nouns or record.nouns, parts, strict=True)
    ]
