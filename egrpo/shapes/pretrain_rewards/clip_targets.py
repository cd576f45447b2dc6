"""Dense targets of the CLIP: what stands in every cell, what a prompt asks for, what a picture shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from egrpo.shapes.plans import cell_of
from egrpo.shapes.scene import COLORS, GRID, LOCALITIES, SHAPES, TEXTURES, Spec, Thing

DIRECTIONS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # in which the first thing lies from the second
PART = (5, 6, 3, 4)  # choices for a part: shape, colour, texture, each with "not said", and count (0 = no such part)
ASKED = (*PART, *PART, 6, 5)  # two parts; relation: none, four directions, next to; bond: none, 2 attributes x 2 kinds
FIGURES = len(SHAPES) * len(COLORS)
RELATIONS = 5
SHOWN = 2 * FIGURES * len(TEXTURES) + FIGURES * FIGURES * RELATIONS


def cell_targets(scenes: list[list[Thing]]) -> Tensor:
    """[N, 9, 3] shape, colour, texture in each cell, 0 = nothing."""
    out = torch.zeros(len(scenes), GRID * GRID, 3, dtype=torch.long)
    for row, scene in zip(out, scenes):
        for thing in scene:
            row[cell_of(thing)] = torch.tensor(
                [1 + SHAPES.index(thing.shape or ""), 1 + COLORS.index(thing.color), 1 + TEXTURES.index(thing.texture)]
            )
    return out


def asked_targets(specs: list[Spec]) -> Tensor:
    """[N, 10] indices into the choices of `ASKED`; parts in the order of the prompt."""
    rows = []
    for spec in specs:
        row: list[int] = []
        for part in spec.parts[:2]:
            for values, value in ((SHAPES, part.shape), (COLORS, part.color), (TEXTURES, part.texture)):
                row.append(0 if value is None else 1 + values.index(value))
            row.append(part.count)
        row += [0] * (2 * len(PART) - len(row))
        direction = LOCALITIES[spec.locality] if spec.locality else None
        row.append(0 if spec.locality is None else 5 if direction is None else 1 + DIRECTIONS.index(direction))
        row.append(0 if spec.bond is None else 1 + 2 * (spec.bond[0] == "texture") + (spec.bond[1] == "different"))
        rows.append(row)
    return torch.tensor(rows)


def shown_targets(scenes: list[list[Thing]]) -> Tensor:
    """[N, SHOWN] 0 or 1: is there one, are there two of each coloured, textured shape; which coloured shape lies how
    from which other. Things that the oracle cannot name count for nothing."""
    out = np.zeros((len(scenes), SHOWN), np.float32)
    for row, scene in zip(out, scenes):
        named = [(t, SHAPES.index(t.shape) * len(COLORS) + COLORS.index(t.color)) for t in scene if t.shape is not None]
        for thing, figure in named:
            first = 2 * (2 * figure + TEXTURES.index(thing.texture))
            row[first + 1 if row[first] else first] = 1
        pairs = row[2 * FIGURES * len(TEXTURES) :].reshape(FIGURES, FIGURES, RELATIONS)
        for a, i in named:
            for b, j in named:
                if a is not b:
                    _relate(pairs[i, j], a.x - b.x, a.y - b.y)
    return torch.from_numpy(out)


def _relate(row: np.ndarray, dx: float, dy: float) -> None:
    """Marks the relations that hold, by the rules of `relation_holds`."""
    if abs(dy) > abs(dx) + 0.5:
        row[0 if dy < 0 else 1] = 1
    elif abs(dx) > abs(dy) + 0.5:
        row[2 if dx < 0 else 3] = 1
    if max(abs(dx), abs(dy)) < 1.5:
        row[4] = 1
