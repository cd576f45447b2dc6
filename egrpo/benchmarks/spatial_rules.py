"""T2I-CompBench's spatial score as a pure function of two boxes (official `2D_spatial_eval.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from egrpo.rewards.detection_rules import MAX_IOU, iou

SIDE = 479  # pixels a side of the official evaluator's images, which are resized to it
NEAR = 150 / SIDE  # "next to": 150 of those pixels, as a fraction of the image
LEAST = 0.5  # a lower score becomes 0
# The first of these that the prompt holds is its relation; "on top of" has no rule, as official.
LOCALITIES = (
    *("on side of", "next to", "near"),
    *("on the left of", "on the right of", "on the bottom of", "on the top of", "on top of"),
)
NEARNESS = LOCALITIES[:3]
# Direction (x, y) in which the first object lies from the second, y downward.
DIRECTIONS = {
    "on the left of": (-1, 0),
    "on the right of": (1, 0),
    "on the bottom of": (0, 1),
    "on the top of": (0, -1),
}


@dataclass(frozen=True)
class Box:
    """Corners (left, top, right, bottom) as fractions of the image, and the detection's score."""

    corners: Sequence[float]
    score: float


def locality_of(prompt: str) -> str:
    """The prompt's relation; "" where it has none of `LOCALITIES`."""
    return next((locality for locality in LOCALITIES if locality in prompt), "")


def spatial_score(locality: str, first: Box | None, second: Box | None) -> float:
    """A quarter of each object's detection score and half the position's, 0..1; below 0.5 it is 0."""
    score = sum(0.25 * box.score for box in (first, second) if box is not None)
    if first is not None and second is not None:
        score += position(locality, first.corners, second.corners) / 2
    return score if score >= LEAST else 0.0


def position(locality: str, first: Sequence[float], second: Sequence[float]) -> float:
    """How well `first` stands `locality` `second`, 0..1.

    "Near" holds where either offset is below 150 pixels; a direction where its offset is the larger one, less where the
    boxes overlap by more than a tenth.
    """
    x, y = ((first[a] + first[a + 2] - second[a] - second[a + 2]) / 2 for a in (0, 1))
    if locality in NEARNESS:
        return 1.0 if min(abs(x), abs(y)) < NEAR else NEAR / max(abs(x), abs(y))
    if locality not in DIRECTIONS:
        return 0.0
    dx, dy = DIRECTIONS[locality]
    along, across = (x * dx, y) if dx else (y * dy, x)
    if along <= abs(across):
        return 0.0
    overlap = iou(first, second)
    return 1.0 if overlap < MAX_IOU else MAX_IOU / overlap
