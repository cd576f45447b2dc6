"""The oracle on pictures that are drawn here by hand, and on what the atlas draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from egrpo.shapes import atlas, oracle
from egrpo.shapes.oracle import detect
from egrpo.shapes.plans import random_scene
from egrpo.shapes.prompts import draw
from egrpo.shapes.reward import OracleReward
from egrpo.shapes.scene import Part, Spec
from egrpo.types import PromptRecord
from tests.shapes.helpers import keys

# Not the atlas' own colours.
INK = {
    "red": (205, 30, 30),
    "green": (40, 175, 60),
    "blue": (30, 70, 230),
    "yellow": (245, 205, 20),
    "purple": (145, 50, 205),
}
SHAPES = ("circle", "square", "triangle", "cross")
KINDS = list(itertools.product(SHAPES, INK, ("plain", "striped")))


def canvas() -> Image.Image:
    return Image.new("RGB", (48, 48), (240, 240, 240))


def put(image: Image.Image, shape: str, color: str, texture: str, column: int, row: int) -> Image.Image:
    """Draws one shape of about 12 pixels into a cell; stripes are two rows bright, two rows dark."""
    x, y = 16 * column, 16 * row
    stencil = Image.new("1", image.size)
    pen = ImageDraw.Draw(stencil)
    if shape == "circle":
        pen.ellipse((x + 2, y + 2, x + 13, y + 13), fill=1)
    elif shape == "square":
        pen.rectangle((x + 2, y + 2, x + 13, y + 13), fill=1)
    elif shape == "triangle":
        pen.polygon([(x + 7, y + 1), (x + 8, y + 1), (x + 14, y + 13), (x + 1, y + 13)], fill=1)
    else:
        pen.rectangle((x + 6, y + 1, x + 9, y + 14), fill=1)
        pen.rectangle((x + 1, y + 6, x + 14, y + 9), fill=1)
    pixels, inside = np.array(image), np.array(stencil)
    dark = np.where((np.arange(48) % 4 < 2) & (texture == "striped"), 0.5, 1.0)[:, None, None]
    pixels[inside] = (np.array(INK[color]) * dark * np.ones((48, 48, 1)))[inside].astype(np.uint8)
    return Image.fromarray(pixels)


def scene(*things: tuple[str, str, str, int, int]) -> Image.Image:
    image = canvas()
    for thing in things:
        image = put(image, *thing)
    return image


def record(*parts: Part, **rest: object) -> PromptRecord:
    return PromptRecord("a prompt", extra={"scene": Spec(parts, **rest).to_dict()})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape, color, texture", KINDS)
def test_reads_every_kind_of_shape_drawn_by_hand_in_every_cell(shape, color, texture):
    for cell in range(9):
        thing = (shape, color, texture, cell % 3, cell // 3)
        assert keys(detect(np.asarray(scene(thing)))) == [thing]


def test_reads_nine_neighbours_apart():
    things = [(*KINDS[(7 * cell) % 40], cell % 3, cell // 3) for cell in range(9)]
    assert keys(detect(np.asarray(scene(*things)))) == sorted(things, key=str)


def test_centres_are_in_cells():
    (found,) = detect(np.asarray(scene(("square", "red", "plain", 2, 1))))
    assert (found.x, found.y) == (2.5, 1.5)  # columns 34..45, rows 18..29


def test_exact_on_a_thousand_scenes_as_the_atlas_draws_them():
    rng = np.random.default_rng(11)
    scenes = [random_scene(rng) for _ in range(1000)]
    right = sum(keys(detect(atlas.paint(atlas.encode(s, rng)))) == keys(s) for s in scenes)
    assert right >= 995


@pytest.mark.parametrize("spoil", ["noise", "blur", "both"])
def test_reads_through_noise_and_slight_blur(spoil):
    rng = np.random.default_rng(12)
    right = 0
    for _ in range(200):
        truth = random_scene(rng)
        pixels = atlas.paint(atlas.encode(truth, rng))
        if spoil in ("blur", "both"):
            pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.5)))
        if spoil in ("noise", "both"):
            pixels = np.clip(pixels.astype(int) + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
        right += keys(detect(pixels)) == keys(truth)
    assert right >= 198


@pytest.mark.parametrize("level", [0, 90, 236, 255])
def test_an_empty_canvas_of_any_grey_holds_nothing(level):
    assert detect(np.full((48, 48, 3), level, np.uint8)) == []


def test_specks_are_noise():
    pixels = np.asarray(scene(("circle", "blue", "plain", 0, 0))).copy()
    pixels[30:33, 30:33] = INK["red"]  # 9 pixels
    pixels[40, 2:12] = INK["green"]  # 10 pixels
    assert keys(detect(pixels)) == [("circle", "blue", "plain", 0, 0)]


@pytest.mark.parametrize(
    "name, box",
    [
        ("bar", (4, 18, 43, 22)),  # longer than any cell
        ("block", (17, 17, 40, 40)),  # larger than any cell
        ("short line", (18, 23, 29, 25)),
        ("small square", (20, 20, 24, 24)),
    ],
)
def test_an_unknown_blob_has_no_name(name, box):
    image = canvas()
    ImageDraw.Draw(image).rectangle(box, fill=INK["green"])
    (found,) = detect(np.asarray(image))
    assert (found.shape, found.color) == (None, "green")


def test_touching_shapes_of_one_colour_have_no_name():
    image = scene(("square", "red", "plain", 0, 1), ("square", "red", "plain", 1, 1))
    ImageDraw.Draw(image).rectangle((10, 22, 20, 25), fill=INK["red"])
    assert [found.shape for found in detect(np.asarray(image))] == [None]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((32, 48, 3), np.uint8),
        np.zeros((48, 48), np.uint8),
        np.zeros((48, 48, 4), np.uint8),
        np.zeros((3, 48, 48), np.uint8),
        np.zeros((48, 48, 3), np.float32),
        np.zeros((48, 48, 3), np.int64),
    ],
)
def test_other_sizes_and_types_are_refused(pixels):
    with pytest.raises(ValueError, match="48x48x3 uint8"):
        detect(pixels)


RED_CIRCLE, BLUE_SQUARE = Part("circle", "red"), Part("square", "blue")


@pytest.mark.parametrize(
    "drawn, expected",
    [
        ([("circle", "red", "striped", 0, 0), ("square", "blue", "plain", 2, 2)], 1.0),
        ([("circle", "red", "plain", 0, 0)], 0.5),  # the square is missing
        ([("circle", "red", "plain", 0, 0), ("square", "blue", "plain", 2, 2), ("cross", "red", "plain", 1, 1)], 0.5),
        ([("circle", "red", "plain", 0, 0), ("square", "green", "plain", 2, 2)], 0.75),  # wrong colour
        ([("circle", "blue", "plain", 0, 0), ("square", "red", "plain", 2, 2)], 0.5),  # colours swapped
        ([], 0.0),
    ],
)
def test_score_of_hand_drawn_pictures(drawn, expected):
    image, asked = scene(*drawn), record(RED_CIRCLE, BLUE_SQUARE)
    assert oracle.score(image, asked) == expected
    assert oracle.score(np.asarray(image), asked) == expected
    assert oracle.score(image.convert("RGBA"), asked) == expected


def test_a_surplus_blob_counts_as_a_thing():
    image = scene(("circle", "red", "plain", 0, 0), ("square", "blue", "plain", 2, 0))
    ImageDraw.Draw(image).rectangle((10, 36, 40, 38), fill=INK["green"])
    assert oracle.score(image, record(RED_CIRCLE, BLUE_SQUARE)) == 0.5


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"scene": None},
        {"scene": "a dog"},
        {"scene": {}},
        {"scene": {"parts": []}},
        {"scene": {"parts": [{"size": 1}]}},
        {"scene": {"parts": [{}, {}], "locality": "near"}},
    ],
)
def test_a_record_without_a_scene_is_refused_by_its_prompt(extra):
    with pytest.raises(ValueError, match=r"cannot judge 'a dog'.*'scene'"):
        oracle.score(canvas(), PromptRecord("a dog", ["dog"], task_type="object", extra=extra))


def test_rewards_are_soft_or_strict():
    asked = [record(RED_CIRCLE, BLUE_SQUARE)] * 3
    right = scene(("circle", "red", "plain", 0, 0), ("square", "blue", "plain", 2, 2))
    almost = scene(("circle", "red", "plain", 0, 0), ("square", "green", "plain", 2, 2))
    images = [right, almost, canvas()]
    assert OracleReward()(images, asked).tolist() == [1.0, 0.75, 0.0]
    assert OracleReward(strict=True)(images, asked).tolist() == [1.0, 0.0, 0.0]


def test_reward_wants_a_record_an_image():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        OracleReward()([canvas()], [draw(np.random.default_rng(0))] * 2)


def test_overlaps_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        inside = rng.random(rng.integers(3, 17, 2)) < 0.7
        side = atlas.CELL + 4
        for shape, found in zip(SHAPES, oracle._overlaps(inside), strict=True):
            placed, best = oracle._centred(oracle._trimmed(shape), side), 0.0
            for shift in itertools.product((-1, 0, 1), repeat=2):
                moved = np.roll(oracle._centred(inside, side), shift, (0, 1))
                best = max(best, (moved & placed).sum() / (moved | placed).sum())
            assert found == best


def test_a_picture_is_read_once():
    """Oracle and strict verdict, as rewards and as judges, look at the same pictures."""
    pixels = np.array(put(canvas(), "circle", "red", "plain", 1, 1))
    first = detect(pixels)
    before = oracle._read.cache_info()
    again = detect(pixels.copy())
    assert again == first and oracle._read.cache_info().hits == before.hits + 1
    again.clear()  # a reader's own list
    pixels[16:32, 16:32] = 240
    assert detect(pixels) == [] and len(first) == 1
