"""What all four reward networks learn from: open prompts, scenes right and wrong for them, and their pictures.

A picture is made of 36 codes. The networks will judge pictures of the VQ decoder, some of them malformed. So `Painter`
paints scenes in two looks, exactly as the atlas has them and as the decoder renders them, and `draw_malformed` decodes
codes with mistakes that a policy makes. What a malformed picture shows is what the oracle reads off it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egrpo.base.errors import UserError
from egrpo.data import read_prompts
from egrpo.paths import resolve
from egrpo.shapes import atlas, oracle
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, random_scene, spoil
from egrpo.shapes.pretrain.codec import to_uint8
from egrpo.shapes.prompts import draw_open
from egrpo.shapes.scene import COLORS, GRID, SHAPES, TEXTURES, Spec, Thing, judge
from egrpo.types import PromptRecord

JANUS = "package:egrpo/shapes/assets/janus"
VALIDATION = "package:egrpo/shapes/assets/prompts/validation.jsonl"
TILES = 2 * GRID  # codes a side
LOOKS = 24  # renderings by the decoder that are kept of each code


def draw_example(rng: np.random.Generator, task_type: str | None = None) -> tuple[PromptRecord, list[Thing]]:
    """An open prompt (see `split_of`; never one of the validation's scenes) and a scene that is right for it."""
    record = draw_open(rng, task_type)
    return record, draw_scene(spec_of(record), rng)


def held_out_records(count: int, seed: int = 1) -> list[PromptRecord]:
    """`count` distinct prompts of the shipped validation file that nothing was trained on, in random order.

    Raises:
        UserError: there are fewer.
    """
    records = [r for r in read_prompts(resolve(VALIDATION)) if r.extra["split"] != "seen"]
    if count > len(records):
        raise UserError(f"{count} held-out prompts are asked for, the validation file has {len(records)}")
    order = np.random.default_rng(seed).permutation(len(records))[:count]
    return [records[i] for i in order]


def wrong_scene(things: list[Thing], spec: Spec, rng: np.random.Generator) -> list[Thing]:
    """A hard negative: the scene with one mistake that counts for `spec` (some touch nothing that was asked for)."""
    while True:
        spoiled = spoil(things, rng)
        if judge(spoiled, spec) < 1:
            return spoiled


def random_code(rng: np.random.Generator, quadrant: int) -> int:
    """A code of this quadrant (0..3) of a random thing."""
    shape, color, texture = (str(rng.choice(values)) for values in (SHAPES, COLORS, TEXTURES))
    return atlas.object_code(shape, color, texture, quadrant) + int(rng.integers(atlas.VARIANTS))


def malform(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[36] codes with one to four mistakes of a policy; one in ten comes back empty.

    A mistake erases a tile, draws another thing's quadrant there, draws a stray quadrant, or puts a thing across the
    borders of cells.
    """
    grid = codes.reshape(TILES, TILES).copy()
    if rng.random() < 0.1:
        return rng.integers(0, atlas.VARIANTS, codes.shape)
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(4)
        drawn = np.argwhere(grid >= atlas.VARIANTS)
        if kind < 2 and len(drawn):
            row, column = drawn[rng.integers(len(drawn))]
            quadrant = row % 2 * 2 + column % 2
            grid[row, column] = random_code(rng, quadrant) if kind else rng.integers(atlas.VARIANTS)
        elif kind == 2:
            row, column = rng.integers(TILES, size=2)
            grid[row, column] = random_code(rng, int(rng.integers(4)))
        else:
            row, column = rng.integers(TILES - 1, size=2)
            first = random_code(rng, 0)
            grid[row : row + 2, column : column + 2] = first + atlas.VARIANTS * np.arange(4).reshape(2, 2)
    return grid.reshape(-1)


def read(pictures: np.ndarray) -> list[list[Thing]]:
    """[N, 48, 48, 3] uint8 -> what the oracle sees on each: the truth for malformed pictures."""
    return [oracle.detect(picture) for picture in pictures]


def decode(vqmodel: Any, codes: np.ndarray, chunk: int = 32) -> np.ndarray:
    """[N, 36] codes -> [N, 48, 48, 3] uint8 as the VQ decoder paints them (about 7 ms each on one CPU core)."""
    with torch.no_grad():
        parts = [to_uint8(vqmodel.decode(part)) for part in torch.from_numpy(codes).split(chunk)]
    return np.concatenate(parts)


def load_decoder() -> Any:
    """The shipped VQ model, in evaluation mode."""
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(resolve(JANUS), local_files_only=True)
    return model.model.vqmodel.eval().to(memory_format=torch.channels_last)


class Painter:
    """Paints well-formed scenes as cheaply as the atlas, half of them in the atlas's look and half in the decoder's.

    The decoder takes longer for a picture than a tiny network for learning from it. So it decodes `pool` scenes once,
    and later pictures are put together from their 8 x 8 patches: up to `LOOKS` of each code. Not for malformed codes,
    which the decoder blends with their neighbours (see `draw_malformed`). Measure on `decode`, the real thing.
    """

    def __init__(self, seed: int, pool: int = 1500):
        rng = np.random.default_rng(seed)
        codes = np.stack([atlas.encode(random_scene(rng), rng) for _ in range(pool)])
        tiles = decode(load_decoder(), codes).reshape(pool, TILES, atlas.PATCH, TILES, atlas.PATCH, 3)
        tiles = tiles.swapaxes(2, 3).reshape(-1, atlas.PATCH, atlas.PATCH, 3)
        flat = codes.reshape(-1)
        exact = atlas.patches()
        self.looks = np.repeat(exact[:, None], LOOKS, 1)  # [K, LOOKS, 8, 8, 3]; a code that is not seen stays exact
        for code in range(atlas.NUM_CODES):
            seen = np.flatnonzero(flat == code)
            if len(seen):
                self.looks[code] = tiles[rng.choice(seen, LOOKS)]

    def paint(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N, 36] codes -> [N, 48, 48, 3] uint8."""
        pictures = atlas.paint(codes)
        rendered = rng.random(len(codes)) < 0.5
        tiles = self.looks[codes[rendered], rng.integers(LOOKS, size=codes[rendered].shape)]
        tiles = tiles.reshape(-1, TILES, TILES, atlas.PATCH, atlas.PATCH, 3).swapaxes(2, 3)
        pictures[rendered] = tiles.reshape(-1, atlas.SIDE, atlas.SIDE, 3)
        return pictures


@dataclass(frozen=True)
class Malformed:
    """`count` malformed pictures, each made from a scene that is right for its prompt."""

    records: list[PromptRecord]  # open prompts
    scenes: list[list[Thing]]  # right ones, from which the pictures were made
    pictures: np.ndarray  # [count, 48, 48, 3] uint8, by the VQ decoder
    things: list[list[Thing]]  # what the oracle reads off the pictures


def draw_malformed(count: int, rng: np.random.Generator) -> Malformed:
    """Draws and decodes malformed pictures (about 9 ms each): keep them and use them again."""
    records, scenes = zip(*(draw_example(rng) for _ in range(count)))
    codes = np.stack([malform(atlas.encode(scene, rng), rng) for scene in scenes])
    pictures = decode(load_decoder(), codes)
    return Malformed(list(records), list(scenes), pictures, read(pictures))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """[N, 48, 48, 3] uint8 -> [N, 3, 48, 48] float32 in -1..1: mean and standard deviation of .5, as processors say."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
