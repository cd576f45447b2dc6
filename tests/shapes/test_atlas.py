"""Codes and patches: distinct, invertible, and grain that means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from egrpo.shapes import atlas
from egrpo.shapes.oracle import detect
from egrpo.shapes.plans import random_scene
from egrpo.shapes.scene import COLORS, SHAPES, TEXTURES, Thing
from tests.shapes.helpers import keys


def test_sizes():
    assert atlas.NUM_CODES == 4 * (1 + 4 * 5 * 2 * 4) == 644
    assert atlas.patches().shape == (644, 8, 8, 3)
    assert (atlas.SIDE, atlas.TOKENS) == (48, 36)


def test_patches_are_distinct_and_fixed():
    patches = atlas.patches()
    assert len({patch.tobytes() for patch in patches}) == 644
    assert (atlas.patches.__wrapped__() == patches).all()


def test_object_codes_fill_the_table_after_the_background():
    codes = [atlas.object_code(s, c, t, q) for s in SHAPES for c in COLORS for t in TEXTURES for q in range(4)]
    assert codes == list(range(4, 644, 4))


def test_painting_puts_each_patch_where_its_code_stands():
    codes = np.random.default_rng(0).integers(0, 644, (2, 36))
    painted = atlas.paint(codes)
    assert painted.shape == (2, 48, 48, 3)
    for position in range(36):
        y, x = 8 * (position // 6), 8 * (position % 6)
        assert (painted[:, y : y + 8, x : x + 8] == atlas.patches()[codes[:, position]]).all()
    assert (atlas.paint(codes[1]) == painted[1]).all()


def test_codes_read_back_from_the_picture():
    rng = np.random.default_rng(1)
    table = {patch.tobytes(): code for code, patch in enumerate(atlas.patches())}
    for _ in range(100):
        codes = atlas.encode(random_scene(rng), rng)
        picture = atlas.paint(codes)
        tiles = picture.reshape(6, 8, 6, 8, 3).swapaxes(1, 2).reshape(36, 8, 8, 3)
        assert [table[tile.tobytes()] for tile in tiles] == codes.tolist()


def test_encoding_by_hand():
    codes = atlas.encode([Thing("circle", "red", "plain", 1.5, 0.5)], np.random.default_rng(2)).reshape(6, 6)
    meaning = codes // 4  # without grain: 0 background, 1..4 the quadrants of the first kind of thing
    expected = np.zeros((6, 6), int)
    expected[0:2, 2:4] = [[1, 2], [3, 4]]
    assert (meaning == expected).all()
    assert set((codes % 4).flatten()) == {0, 1, 2, 3}


@pytest.mark.parametrize("variant", range(4))
def test_grain_means_nothing_to_the_oracle(variant):
    rng = np.random.default_rng(3)
    for _ in range(100):
        things = random_scene(rng)
        codes = atlas.encode(things, rng)
        assert keys(detect(atlas.paint(codes // 4 * 4 + variant))) == keys(things)


def test_every_code_is_drawn():
    rng = np.random.default_rng(4)
    seen = {int(code) for _ in range(1500) for code in atlas.encode(random_scene(rng), rng)}
    assert seen == set(range(644))
