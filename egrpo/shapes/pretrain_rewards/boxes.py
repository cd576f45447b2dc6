"""Boxes of drawn things: where they stand, how they overlap. All boxes are (cx, cy, w, h) in 0..1 unless said."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from egrpo.shapes.atlas import CELL, SIDE, shape_mask
from egrpo.shapes.scene import GRID, Thing


@lru_cache
def _extent(shape: str) -> tuple[float, float, float, float]:
    """Offset of the mask's box centre from its cell's centre, and the box's size, as shares of the picture."""
    mask = shape_mask(shape)
    spans = []
    for axis in (0, 1):
        covered = np.flatnonzero(mask.any(axis))
        spans.append((covered[0], covered[-1] + 1))
    (left, right), (top, bottom) = spans
    centre_x, centre_y = (left + right - CELL) / 2, (top + bottom - CELL) / 2
    return centre_x / SIDE, centre_y / SIDE, (right - left) / SIDE, (bottom - top) / SIDE


def box_of(thing: Thing, *, drawn: bool) -> tuple[float, float, float, float]:
    """The box around a thing that has a shape.

    `drawn`: the thing is one of a scene, whose x and y are its cell's centre; otherwise the oracle read it, and they
    are its box's centre.
    """
    assert thing.shape is not None
    dx, dy, width, height = _extent(thing.shape)
    shift = (dx, dy) if drawn else (0.0, 0.0)
    return thing.x / GRID + shift[0], thing.y / GRID + shift[1], width, height


def corners(boxes: Tensor) -> Tensor:
    """[..., 4] cx, cy, w, h -> x0, y0, x1, y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its generalised form (GIoU, -1..1) of boxes [..., 4] that broadcast."""
    a, b = corners(a), corners(b)
    area_a, area_b = ((c[..., 2:] - c[..., :2]).prod(-1) for c in (a, b))
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area_a + area_b - inner
    iou = inner / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)
