"""Plans say the scene in several wordings, and fit the length that the policy may write."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, random_scene, spoil, write_plan
from egrpo.shapes.prompts import draw
from egrpo.shapes.scene import Thing
from egrpo.types import TASK_TYPES
from tests.shapes.helpers import keys, read_plan, wording

CELLS = [(x, y) for y in range(3) for x in range(3)]


def in_order(things: list[Thing]) -> list[tuple]:
    return [(t.shape, t.color, t.texture, int(t.x), int(t.y)) for t in things]


def test_the_wordings_by_hand():
    rng = np.random.default_rng(0)
    # Told in raster order, whatever the order of the scene.
    things = [Thing("cross", "blue", "plain", 1.5, 1.5), Thing("circle", "red", "striped", 0.5, 0.5)]
    assert {write_plan(things, rng) for _ in range(100)} == {
        "top left striped red circle; center blue cross",
        "top left: striped red circle, center: blue cross",
        "at top left a striped red circle and at center a blue cross",
        "a striped red circle at top left with a blue cross at center",
    }


def test_every_wording_reads_back_as_the_scene():
    rng = np.random.default_rng(1)
    used: Counter[str] = Counter()
    for _ in range(1000):
        things = random_scene(rng)
        plan = write_plan(things, rng)
        assert read_plan(plan) == sorted(in_order(things), key=lambda key: (key[4], key[3]))
        used[wording(plan)] += 1
    assert len(used) == 4
    assert min(used.values()) > 190  # 250 expected, standard deviation 14


@pytest.mark.parametrize("task", TASK_TYPES)
def test_plans_of_prompts_fit_the_length_limit(task, tokenizer, settings):
    rng = np.random.default_rng(2)
    for _ in range(300):
        things = draw_scene(spec_of(draw(rng, task)), rng)
        assert length(write_plan(spoil(things, rng), rng), tokenizer) <= settings["model"]["max_plan_tokens"]


def test_the_longest_plans_fit_the_length_limit(tokenizer, settings):
    rng = np.random.default_rng(3)
    words = [
        (shape, color) for shape in ("triangle", "square", "circle", "cross") for color in ("purple", "yellow", "green")
    ]
    longest = 0
    for shape, color in words:
        # Five things: the most that a prompt asks for at the very most, and one too many.
        things = [Thing(shape, color, "striped", x + 0.5, y + 0.5) for x, y in CELLS if x != 1 or y == 2][:5]
        longest = max(longest, *(length(write_plan(things, rng), tokenizer) for _ in range(40)))
    assert longest <= settings["model"]["max_plan_tokens"]


def length(plan: str, tokenizer) -> int:
    """Tokens of a plan as it is learned: after a blank, with its end of sequence."""
    return len(tokenizer(f" {plan}", add_special_tokens=False).input_ids) + 1


def test_scenes_stand_in_distinct_cells():
    rng = np.random.default_rng(4)
    sizes = Counter()
    for _ in range(500):
        things = random_scene(rng)
        assert len({(t.x, t.y) for t in things}) == len(things)
        sizes[len(things)] += 1
    assert set(sizes) == {1, 2, 3, 4, 5}


def test_spoiling_is_one_mistake_in_a_scene_that_can_be_drawn():
    rng = np.random.default_rng(5)
    changes: Counter[int] = Counter()
    for _ in range(1000):
        things = random_scene(rng)[:4]
        before = keys(things)
        spoiled = spoil(things, rng)
        assert keys(things) == before  # the scene given stays as it is
        assert spoiled and len({(t.x, t.y) for t in spoiled}) == len(spoiled)
        changes[len(spoiled) - len(things)] += 1
        touched = len(set(in_order(things)) - set(in_order(spoiled)))
        assert touched <= 2  # two where colours are swapped
    assert set(changes) == {-1, 0, 1}
    assert changes[-1] + changes[1] < 250  # 1 of 6 kinds
