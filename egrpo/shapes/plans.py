"""Scenes for prompts, plans for scenes, and the deliberate mistakes that make the shipped model middling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from egrpo.shapes.atlas import place
from egrpo.shapes.scene import (
    COLORS,
    GRID,
    POSITIONS,
    SHAPES,
    TEXTURES,
    Part,
    Spec,
    Thing,
    bond_holds,
    relation_holds,
)


def draw_scene(spec: Spec, rng: np.random.Generator) -> list[Thing]:
    """A scene that satisfies `spec` exactly: open attributes and positions at random. Things stand in slot order."""
    while True:
        cells = rng.permutation(GRID * GRID)
        things = [_fill(slot, int(cell), rng) for slot, cell in zip(spec.slots, cells, strict=False)]
        if spec.locality and not relation_holds(things[0], things[spec.parts[0].count], spec.locality):
            continue
        if spec.bond and not bond_holds(things, spec.bond):
            continue
        return things


def _fill(part: Part, cell: int, rng: np.random.Generator) -> Thing:
    return place(
        part.shape or _choice(SHAPES, rng),
        part.color or _choice(COLORS, rng),
        part.texture or ("striped" if rng.random() < 0.35 else "plain"),
        cell,
    )


def _choice(values: tuple[str, ...], rng: np.random.Generator) -> str:
    return values[rng.integers(len(values))]


def cell_of(thing: Thing) -> int:
    return int(thing.y) * GRID + int(thing.x)


def write_plan(things: list[Thing], rng: np.random.Generator) -> str:
    """One of several wordings of the scene: where stands what, in raster order."""
    style = rng.integers(4)
    parts = []
    for thing in sorted(things, key=cell_of):
        what = f"{'striped ' if thing.texture == 'striped' else ''}{thing.color} {thing.shape}"
        where = POSITIONS[cell_of(thing)]
        parts.append(
            (f"{where} {what}", f"{where}: {what}", f"at {where} a {what}", f"a {what} at {where}")[style],
        )
    return ("; ", ", ", " and ", " with ")[style].join(parts)


def spoil(things: list[Thing], rng: np.random.Generator) -> list[Thing]:
    """The scene with one mistake: a wrong colour, shape, texture or place, one too many or few, swapped attributes."""
    kind = _choice(("color", "shape", "texture", "place", "count", "swap"), rng)
    i = int(rng.integers(len(things)))
    spoiled = list(things)
    free = [c for c in range(GRID * GRID) if c not in {cell_of(t) for t in things}]
    spot = int(rng.choice(free))
    if kind == "count":
        if len(things) > 1 and rng.random() < 0.5:
            del spoiled[i]
        else:
            spoiled.append(_fill(Part(), spot, rng))
    elif kind == "place":
        spoiled[i] = replace(things[i], x=spot % GRID + 0.5, y=spot // GRID + 0.5)
    elif kind == "swap" and len(things) > 1:
        j = (i + 1) % len(things)
        spoiled[i] = replace(things[i], color=things[j].color)
        spoiled[j] = replace(things[j], color=things[i].color)
    else:
        name = kind if kind in ("shape", "texture") else "color"
        values = {"color": COLORS, "shape": SHAPES, "texture": TEXTURES}[name]
        other = [value for value in values if value != getattr(things[i], name)]
        change: dict[str, Any] = {name: _choice(tuple(other), rng)}
        spoiled[i] = replace(things[i], **change)
    return spoiled


def random_scene(rng: np.random.Generator) -> list[Thing]:
    """One to five random things in distinct cells."""
    return [_fill(Part(), int(cell), rng) for cell in rng.permutation(GRID * GRID)[: rng.integers(1, 6)]]
