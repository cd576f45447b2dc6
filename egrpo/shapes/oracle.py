"""The oracle reads a picture: connected components by hue, then shape by overlap with templates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from egrpo.base.errors import UserError
from egrpo.shapes.atlas import CELL, RGB, SIDE, shape_mask
from egrpo.shapes.scene import COLORS, SHAPES, Spec, Thing, judge
from egrpo.types import PromptRecord

MIN_AREA = 14  # pixels; smaller specks are noise
MIN_OVERLAP = 0.74  # intersection over union with the best template; below it the shape has no name
MIN_SATURATION = 0.30
STRIPE_CONTRAST = 0.16  # standard deviation of brightness over its mean; plain shapes have below .10, striped above .25
CANVAS = CELL + 4  # pixels a side, on which components and templates are laid over each other
SHIFTS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def hue_saturation_value(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[H, W, 3] uint8 -> hue in turns, saturation and value in 0..1, each [H, W]."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32) / 255
    return hsv[..., 0], hsv[..., 1], hsv[..., 2]


@lru_cache
def color_hues() -> np.ndarray:
    """[5] hue of each colour, in turns."""
    swatch = np.array([[RGB[color] for color in COLORS]], np.uint8)
    return hue_saturation_value(swatch)[0][0]


def detect(pixels: np.ndarray) -> list[Thing]:
    """What is drawn on [H, W, 3] uint8 pixels, H = W = 48. Raises UserError on another size or type."""
    if pixels.shape != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
        raise UserError(f"the oracle reads {SIDE}x{SIDE}x3 uint8 pixels, got {pixels.shape} {pixels.dtype}")
    return list(_read(pixels.tobytes()))


@lru_cache(maxsize=2048)  # a batch: several rewards and judges read the same pictures, one after another
def _read(content: bytes) -> tuple[Thing, ...]:
    """What is drawn on the pixels that `content` holds."""
    pixels = np.frombuffer(content, np.uint8).reshape(SIDE, SIDE, 3)
    hue, saturation, value = hue_saturation_value(pixels)
    distance = abs(hue[..., None] - color_hues())
    nearest = np.minimum(distance, 1 - distance).argmin(-1)
    painted = saturation >= MIN_SATURATION
    things = []
    for index, color in enumerate(COLORS):
        labels, _ = ndimage.label(painted & (nearest == index))
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[window] == label
            if inside.sum() < MIN_AREA:
                continue
            bright = value[window][inside]
            texture = "striped" if bright.std() > STRIPE_CONTRAST * bright.mean() else "plain"
            y, x = ((s.start + s.stop) / 2 / CELL for s in window)
            things.append(Thing(name_shape(inside), color, texture, x, y))
    return tuple(things)


def name_shape(inside: np.ndarray) -> str | None:
    """The template that overlaps a component [h, w] bool best, or None where none overlaps enough."""
    if max(inside.shape) > CELL:
        return None
    overlaps = _overlaps(inside)
    best = int(overlaps.argmax())
    return SHAPES[best] if overlaps[best] >= MIN_OVERLAP else None


def _overlaps(inside: np.ndarray) -> np.ndarray:
    """Intersection over union with each template, boxes' centres aligned up to a pixel; [shapes]."""
    templates = _templates()
    component = _centred(inside, CANVAS).reshape(-1).astype(np.float64)
    both = templates @ component  # counts of pixels
    either = templates.sum(axis=-1) + component.sum() - both
    return (both / either).max(axis=-1)


@lru_cache
def _templates() -> np.ndarray:
    """[shapes, shifts, pixels of a canvas] float64: 1 where a shifted template is."""
    placed = [_centred(_trimmed(shape), CANVAS) for shape in SHAPES]
    return np.array([[np.roll(mask, shift, (0, 1)).reshape(-1) for shift in SHIFTS] for mask in placed], np.float64)


@lru_cache
def _trimmed(shape: str) -> np.ndarray:
    mask = shape_mask(shape)
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _centred(mask: np.ndarray, side: int) -> np.ndarray:
    canvas = np.zeros((side, side), bool)
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return canvas


def spec_of(record: PromptRecord) -> Spec:
    """What the prompt asks, from the record's `scene` key; raises UserError where it has none."""
    try:
        return Spec.from_dict(record.extra["scene"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the oracle cannot judge {record.prompt!r}: its record has no valid 'scene' key; "
            "use prompts made by egrpo.shapes.prompts, or another reward"
        ) from error


def score(image: Image.Image | np.ndarray, record: PromptRecord) -> float:
    """Oracle score in 0..1 with partial credit; 1 = all that was asked for and nothing else."""
    pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
    return judge(detect(pixels), spec_of(record))
