"""Formulas on cases made by hand: GenEval's and T2I-CompBench's rules, 3-in-1, WiScore, weighted sums."""

from __future__ import annotations

import numpy as np
import pytest

from egrpo.benchmarks.geneval_rules import Found, is_right, relations
from egrpo.benchmarks.results import Result, bootstrap, by_prompt, with_overall
from egrpo.benchmarks.rubric import BadAnswerError, Rubric
from egrpo.benchmarks.spatial_rules import SIDE, Box, locality_of, position, spatial_score
from egrpo.benchmarks.t2i_compbench import three_in_one
from tests.benchmarks.pieces import benchmark

LEFT, RIGHT, MIDDLE = (0, 40, 20, 60), (80, 40, 100, 60), (40, 40, 60, 60)


def found(*boxes, score=0.9):
    return [Found(box, score) for box in boxes]


def no_colors(objects, name):
    raise AssertionError("no clause asks for a colour")


@pytest.mark.parametrize(
    "first, second, expected",
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        ((40, 0, 60, 20), (40, 80, 60, 100), {"above"}),
        ((40, 80, 60, 100), (40, 0, 60, 20), {"below"}),
        ((0, 0, 20, 20), (80, 80, 100, 100), {"left of", "above"}),
        ((39, 40, 59, 60), MIDDLE, set()),  # 1 pixel, less than a tenth of both widths
        ((36, 40, 56, 60), MIDDLE, set()),  # 4 pixels: exactly the margin
        ((32.5, 40, 52.5, 60), MIDDLE, set()),  # 7.5 pixels: beyond the margin by less than half of it
        ((31.5, 40, 51.5, 60), MIDDLE, {"left of"}),  # 8.5 pixels: 4.5 beyond, more than half
        (MIDDLE, MIDDLE, set()),
        # 45 to the left, 30 up, margin 4: 41/54.08 and 26/54.08, of which only the first exceeds a half
        ((0, 40, 20, 60), (45, 70, 65, 90), {"left of"}),
    ],
)
def test_geneval_relations(first, second, expected):
    assert relations(Found(first, 1), Found(second, 1)) == expected


@pytest.mark.parametrize(
    "objects, right", [({"cup": 1}, False), ({"cup": 2}, True), ({"cup": 3}, False), ({"dog": 2}, False), ({}, False)]
)
def test_geneval_counts(objects, right):
    row = {"include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup", "count": 3}]}
    assert is_right({n: found(*[LEFT] * k) for n, k in objects.items()}, row, no_colors) is right


def test_geneval_colours_are_asked_of_the_surest_objects_only():
    row = {"include": [{"class": "cup", "count": 1, "color": "red"}]}
    seen = []

    def colors_of(objects, name):
        seen.append((list(objects), name))
        return ["red" if f.box == LEFT else "blue" for f in objects]

    assert is_right({"cup": found(LEFT, RIGHT)}, row, colors_of)
    assert not is_right({"cup": found(RIGHT, LEFT)}, row, colors_of)
    assert seen == [(found(LEFT), "cup"), (found(RIGHT), "cup")]


def test_geneval_positions_need_their_target():
    row = {
        "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["right of", 0]}],
    }
    assert is_right({"dog": found(LEFT), "cup": found(RIGHT)}, row, no_colors)
    assert not is_right({"dog": found(RIGHT), "cup": found(LEFT)}, row, no_colors)
    assert not is_right({"cup": found(RIGHT)}, row, no_colors)


@pytest.mark.parametrize(
    "locality, first, second, expected",
    [
        ("on the left of", (0, 0.4, 0.2, 0.6), (0.8, 0.4, 1, 0.6), 1.0),
        ("on the right of", (0, 0.4, 0.2, 0.6), (0.8, 0.4, 1, 0.6), 0.0),
        ("on the top of", (0.4, 0, 0.6, 0.2), (0.4, 0.8, 0.6, 1), 1.0),
        ("on the bottom of", (0.4, 0.8, 0.6, 1), (0.4, 0, 0.6, 0.2), 1.0),
        ("on top of", (0.4, 0, 0.6, 0.2), (0.4, 0.8, 0.6, 1), 0.0),  # no rule, as official
        ("", (0, 0, 1, 1), (0, 0, 1, 1), 0.0),
        ("on the left of", (0, 0, 0.2, 0.2), (0.1, 0.2, 0.3, 0.4), 0.0),  # the vertical offset is the larger
        # Overlap 0.1 of 0.3: 0.1 / (1/3)
        ("on the left of", (0.0, 0, 0.2, 1), (0.1, 0, 0.3, 1), 0.3),
        ("next to", (0, 0, 0.2, 0.2), (0.7, 0.1, 0.9, 0.3), 1.0),  # one axis is near
        ("near", (0, 0, 0.2, 0.2), (0.4, 0.8, 0.6, 1), 150 / SIDE / 0.8),
    ],
)
def test_t2i_positions(locality, first, second, expected):
    assert position(locality, first, second) == pytest.approx(expected)


def test_t2i_spatial_score():
    left, right = Box((0, 0.4, 0.2, 0.6), 0.8), Box((0.8, 0.4, 1, 0.6), 0.6)
    assert spatial_score("on the left of", left, right) == pytest.approx(0.25 * 0.8 + 0.25 * 0.6 + 0.5)
    assert spatial_score("on the right of", left, right) == 0.0  # 0.35 is below a half
    assert spatial_score("on the left of", left, None) == 0.0
    assert spatial_score("on the left of", Box((0, 0, 1, 1), 1.0), None) == 0.0  # a quarter at most
    assert spatial_score("next to", None, None) == 0.0


@pytest.mark.parametrize(
    "prompt, locality",
    [
        ("a cat on the left of a dog", "on the left of"),
        ("a cup next to a bottle on the top of a shelf", "next to"),
        ("a cup on top of a shelf", "on top of"),
        ("a cup", ""),
    ],
)
def test_t2i_relations_in_prompts(prompt, locality):
    assert locality_of(prompt) == locality


def test_three_in_one():
    lists = {"without_action": {"the red cup is next to the box"}, "without_spatial": {"the man eats"}}
    assert three_in_one("The red cup is next to the box.", 0.2, 0.6, 0.9, **lists) == pytest.approx(0.4)
    assert three_in_one("The man eats. Slowly.", 0.2, 0.6, 0.9, **lists) == pytest.approx(0.55)
    assert three_in_one("Another", 0.2, 0.6, 0.9, **lists) == pytest.approx(1.7 / 3)


@pytest.mark.parametrize(
    "consistency, realism, beauty, expected",
    [(2, 2, 2, 1.0), (0, 0, 0, 0.0), (2, 1, 0, 0.8), (1, 0, 2, 0.45), (0, 2, 1, 0.25)],
)
def test_wiscore(consistency, realism, beauty, expected):
    rubric = benchmark("wise").rubric
    scores = {"consistency": consistency, "realism": realism, "aesthetic_quality": beauty}
    assert rubric.value(scores) == pytest.approx(expected)  # (0.7 c + 0.2 r + 0.1 a) / 2


@pytest.mark.parametrize("name", ["wise", "wise_verified"])
def test_the_parts_of_wise_sum_to_one_and_cover_all_ids(name):
    of = benchmark(name)
    assert sum(of.weights.values()) == pytest.approx(1)
    ids = [number for first, last in of.parts.values() for number in range(first, last + 1)]
    assert ids == list(range(1, 1001))
    assert {part: last - first + 1 for part, (first, last) in of.parts.items()} == of.expected


def test_questions_hold_prompt_and_explanation_as_they_are():
    text = benchmark("wise").rubric.question("a {explanation} in braces", "what is {prompt}?")
    assert "Text: a {explanation} in braces" in text and "shows: what is {prompt}?" in text


@pytest.mark.parametrize(
    "answer, scores",
    [
        ('{"consistency": 2, "realism": 1, "aesthetic_quality": 0}', (2, 1, 0)),
        ('```json\n{"consistency": 2.0,\n "realism": 1, "aesthetic_quality": 0}\n```', (2, 1, 0)),
        ('<think>{"consistency": 0}</think> {"consistency": 1, "realism": 1, "aesthetic_quality": 1}', (1, 1, 1)),
        ('such as {"a": 1}: {"consistency": 0, "realism": 0, "aesthetic_quality": 2, "why": "x"}', (0, 0, 2)),
        ('{"why": "a {red} cup, no }", "consistency": 2, "realism": 1, "aesthetic_quality": 1}', (2, 1, 1)),
        ('{"consistency": 2, "realism": 1, "aesthetic_quality": 1, "why": "two\nlines {"}', (2, 1, 1)),
        ('{"consistency": "2", "realism": "1", "aesthetic_quality": " 0 "}', (2, 1, 0)),
        ('{"consistency": 2, "realism": 1, "aesthetic_quality": 0, "details": {"hands": {"n": 5}}}', (2, 1, 0)),
        ('{"scores": {"consistency": 2, "realism": 1, "aesthetic_quality": 0}, "note": {}}', (2, 1, 0)),
        ('{"consistency": 2, "realism": 1, "aesthetic_quality": 0} sure: {"confidence": 1}', (2, 1, 0)),
        ('{"consistency": 0} draft</think>{"consistency": 1, "realism": 1, "aesthetic_quality": 1}', (1, 1, 1)),
    ],
)
def test_answers_are_read(answer, scores):
    assert tuple(benchmark("wise").rubric.read(answer).values()) == scores


@pytest.mark.parametrize(
    "answer, text",
    [
        ("Consistency: 2", "no JSON object"),
        ("", "no JSON object"),
        ("{consistency}", "no JSON object"),
        ('{"consistency": 2, "realism": 1}', "aesthetic_quality is missing"),
        ('{"consistency": 3, "realism": 1, "aesthetic_quality": 1}', "consistency is 3, outside 0..2"),
        ('{"consistency": -1, "realism": 1, "aesthetic_quality": 1}', "outside 0..2"),
        ('{"consistency": 1.5, "realism": 1, "aesthetic_quality": 1}', "no whole number"),
        ('{"consistency": NaN, "realism": 1, "aesthetic_quality": 1}', "no whole number"),
        ('{"consistency": "two", "realism": 1, "aesthetic_quality": 1}', "no whole number"),
        ('<think>first {"consistency": 2, "realism": 1, "aesthetic_quality": 0} but', "no JSON object"),
        ('{"consistency": true, "realism": 1, "aesthetic_quality": 1}', "no whole number"),
    ],
)
def test_answers_out_of_range_are_refused(answer, text):
    with pytest.raises(BadAnswerError, match=text):
        benchmark("wise").rubric.read(answer)


def test_a_rubric_must_make_sense():
    with pytest.raises(ValueError, match="sum to 1"):
        Rubric("{prompt} a", {"a": 0.5}, 1)
    with pytest.raises(ValueError, match="must hold"):
        Rubric("{prompt}", {"a": 1.0}, 1)


def test_weighted_sums_need_every_category_of_one_method():
    rows = [Result(c, "m", {"1": v, "2": v}, 2) for c, v in (("a", 0.2), ("b", 0.8))]
    assert with_overall(rows, {"a": 0.25, "b": 0.75})[0].score == pytest.approx(0.65)
    assert with_overall(rows[:1], {"a": 0.25, "b": 0.75}) == []
    other = Result("b", "n", {"1": 0.8}, 1)
    assert with_overall([rows[0], other], {"a": 0.25, "b": 0.75}) == []
    marked = Result("b", "m", {"1": 0.8, "2": 0.8}, 2, "of ours")
    assert with_overall([rows[0], marked], {"a": 0.25, "b": 0.75})[0].stand_in == "of ours"


def test_intervals_are_those_of_the_mean_over_prompts():
    rng = np.random.default_rng(1)
    values = rng.random(400)
    low, high = bootstrap([values], [1.0])
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert bootstrap([values], [1.0]) == [low, high]  # the same every time
    parts = [values, rng.random(100)]
    low, high = bootstrap(parts, [0.4, 0.6])
    error = 1.96 * (0.16 * values.var() / 400 + 0.36 * parts[1].var() / 100) ** 0.5
    assert (high - low) / 2 == pytest.approx(error, rel=0.1)  # prompts are drawn within each part


def test_no_interval_where_nothing_can_be_told():
    assert bootstrap([[0.5]], [1.0]) is None
    assert bootstrap([[1.0, 1.0, 1.0]], [1.0]) is None


def test_a_prompt_counts_once_whatever_its_images():
    assert by_prompt([("a", 0.0), ("a", 1.0), ("b", 1.0)]) == {"a": 0.5, "b": 1.0}
