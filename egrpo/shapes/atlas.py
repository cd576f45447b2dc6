"""Drawing: a scene is a 6 x 6 grid of codes, and each code is one fixed 8 x 8 patch.

A code is what is drawn (background, or a quadrant of a shape in a colour and texture) times a grain variant. The
variants are equivalent: they mean the same to the oracle, and give image tokens an entropy that is no decision.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from egrpo.shapes.scene import COLORS, GRID, SHAPES, TEXTURES, Thing

PATCH = 8  # pixels
CELL = 2 * PATCH
SIDE = GRID * CELL  # 48 pixels
TOKENS = (SIDE // PATCH) ** 2  # 36
VARIANTS = 4
RGB = {
    "red": (214, 48, 52),
    "green": (52, 160, 72),
    "blue": (56, 92, 216),
    "yellow": (232, 196, 40),
    "purple": (152, 66, 190),
}
BACKGROUND = np.array((236, 236, 232), np.float32)
SHADES = (0.90, 0.97, 1.03, 1.10)
STRIPE = 0.55  # brightness of a dark stripe
NUM_CODES = VARIANTS * (1 + len(SHAPES) * len(COLORS) * len(TEXTURES) * 4)


@lru_cache
def shape_mask(shape: str) -> np.ndarray:
    """[16, 16] bool, True where the shape covers its cell; a margin keeps neighbours apart."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    if shape == "circle":
        return x**2 + y**2 <= 6.0**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 5.5
    if shape == "triangle":
        return (y <= 5.5) & (y >= -6.5) & (abs(x) <= (y + 7.5) * 0.5)
    return (np.minimum(abs(x), abs(y)) <= 1.5) & (np.maximum(abs(x), abs(y)) <= 6.5)


@lru_cache
def patches() -> np.ndarray:
    """[K, 8, 8, 3] uint8: the picture of every code. Background codes first, then `object_code` order."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 3.0, (VARIANTS, PATCH, PATCH, 1)).astype(np.float32)
    rows = [BACKGROUND + 2 * grain[v] for v in range(VARIANTS)]
    stripes = np.where(np.arange(CELL) // 2 % 2, 1.0, STRIPE)[:, None, None]
    for shape in SHAPES:
        inside = shape_mask(shape)[..., None]
        for color in COLORS:
            for texture in TEXTURES:
                paint = np.array(RGB[color], np.float32) * (stripes if texture == "striped" else 1.0)
                for quadrant in range(4):
                    top, left = quadrant // 2 * PATCH, quadrant % 2 * PATCH
                    window = np.s_[top : top + PATCH, left : left + PATCH]
                    brush = np.broadcast_to(paint, (CELL, CELL, 3))[window]
                    rows += [
                        np.where(inside[window], brush * shade, BACKGROUND) + grain[v] for v, shade in enumerate(SHADES)
                    ]
    return np.clip(np.stack(rows), 0, 255).round().astype(np.uint8)


def object_code(shape: str, color: str, texture: str, quadrant: int) -> int:
    """First of the `VARIANTS` codes that draw this quadrant (0..3 in raster order)."""
    index = SHAPES.index(shape) * len(COLORS) + COLORS.index(color)
    index = (index * len(TEXTURES) + TEXTURES.index(texture)) * 4 + quadrant
    return VARIANTS * (1 + index)


def place(shape: str, color: str, texture: str, cell: int) -> Thing:
    """A thing in the middle of a grid cell (0..8, raster order)."""
    return Thing(shape, color, texture, cell % GRID + 0.5, cell // GRID + 0.5)


def encode(things: list[Thing], rng: np.random.Generator) -> np.ndarray:
    """[36] int64 codes of a scene, raster order, grain variants drawn from `rng`."""
    grid = np.zeros((2 * GRID, 2 * GRID), np.int64)
    for thing in things:
        assert thing.shape is not None
        row, column = 2 * int(thing.y), 2 * int(thing.x)
        for quadrant in range(4):
            code = object_code(thing.shape, thing.color, thing.texture, quadrant)
            grid[row + quadrant // 2, column + quadrant % 2] = code
    return (grid + rng.integers(0, VARIANTS, grid.shape)).reshape(-1)


def paint(codes: np.ndarray) -> np.ndarray:
    """[..., 36] codes -> [..., 48, 48, 3] uint8, exactly as the codes say (no decoder)."""
    side = 2 * GRID
    tiles = patches()[codes].reshape(*codes.shape[:-1], side, side, PATCH, PATCH, 3)
    return np.moveaxis(tiles, -3, -4).reshape(*codes.shape[:-1], SIDE, SIDE, 3)
