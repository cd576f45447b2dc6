"""`judge` on scenes without pixels: every expected score is worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, spoil
from egrpo.shapes.prompts import draw
from egrpo.shapes.scene import LOCALITIES, Part, Spec, Thing, bond_holds, judge, relation_holds
from egrpo.types import TASK_TYPES


def thing(words: str, column: float = 0, row: float = 0) -> Thing:
    """ "striped red circle" in a cell; plain unless it says striped."""
    *texture, color, shape = words.split()
    return Thing(None if shape == "blob" else shape, color, "striped" if texture else "plain", column + 0.5, row + 0.5)


def spread(*words: str) -> list[Thing]:
    """Things in a row of cells."""
    return [thing(text, i % 3, i // 3) for i, text in enumerate(words)]


CIRCLE, SQUARE = Part("circle"), Part("square")
OBJECT = Spec((CIRCLE, SQUARE))
COLOR = Spec((Part("circle", "red"), Part("square", "blue")))
TEXTURE = Spec((Part("circle", None, "striped"),))
ABOVE = Spec((Part("circle", "red"), Part("square", "blue")), "above")
TWO_ABOVE = Spec((Part("circle", count=2), Part("square")), "above")
TWO = Spec((Part("circle", count=2),))
TWO_AND_ONE = Spec((Part("circle", "red", count=2), Part("square")))
COMPLEX = Spec((Part("circle", "red", "striped"), Part("square", "blue", "plain")), "left of")
SAME = Spec((CIRCLE, SQUARE), bond=("color", "same"))
DIFFERENT = Spec((CIRCLE, SQUARE), bond=("texture", "different"))

CASES = [
    # object: a thing each, the other attributes are free
    (OBJECT, spread("red circle", "blue square"), 1),
    (OBJECT, spread("blue square", "striped red circle"), 1),
    (OBJECT, spread("red circle"), 1 / 2),
    (OBJECT, spread("red circle", "blue circle"), 1 / 2),
    (OBJECT, spread("red triangle", "blue cross"), 0),
    (OBJECT, [], 0),
    # surplus: each takes one share away
    (OBJECT, spread("red circle", "blue square", "green cross"), 1 / 2),
    (OBJECT, spread("red circle", "blue square", "green cross", "red square"), 0),
    (OBJECT, spread("red circle", "blue square", "green cross", "red square", "red cross"), 0),
    (OBJECT, spread("red circle", "blue square", "green blob"), 1 / 2),
    (OBJECT, spread("red circle", "blue blob"), 1 / 2),
    (OBJECT, spread(*["red circle", "blue square"] * 4), 0),
    # color and shape: two attributes a thing
    (COLOR, spread("red circle", "blue square"), 1),
    (COLOR, spread("red circle", "green square"), 3 / 4),
    (COLOR, spread("blue circle", "red square"), 1 / 2),  # either pairing is right by halves
    (COLOR, spread("red square", "blue circle"), 1 / 2),
    (COLOR, spread("green cross", "yellow cross"), 0),
    (COLOR, spread("red blob", "blue blob"), 1 / 2),
    (COLOR, spread("red circle", "blue square", "red circle"), 1 / 2),
    (COLOR, spread("red circle", "red circle", "blue circle"), (1 + 1 / 2 - 1) / 2),
    # texture
    (TEXTURE, spread("striped red circle"), 1),
    (TEXTURE, spread("red circle"), 1 / 2),
    (TEXTURE, spread("striped red cross"), 1 / 2),
    (TEXTURE, spread("red cross"), 0),
    (TEXTURE, spread("striped red circle", "red cross"), 0),
    # spatial: two things and the relation
    (ABOVE, [thing("red circle", 1, 0), thing("blue square", 1, 2)], 1),
    (ABOVE, [thing("blue square", 1, 2), thing("red circle", 1, 0)], 1),
    (ABOVE, [thing("red circle", 1, 2), thing("blue square", 1, 0)], 2 / 3),
    (ABOVE, [thing("green circle", 1, 0), thing("blue square", 1, 2)], (1 / 2 + 1 + 1) / 3),
    (ABOVE, [thing("red circle", 1, 0)], 1 / 3),
    (ABOVE, [thing("red circle", 1, 0), thing("blue square", 1, 1), thing("red cross", 2, 2)], 2 / 3),
    (ABOVE, [thing("green square", 1, 0), thing("green circle", 1, 2)], 1 / 3),  # halves, or nothing and the relation
    # ... of which the second is the second part, not the second thing
    (TWO_ABOVE, [thing("red circle", 0, 0), thing("red circle", 2, 0), thing("red square", 0, 2)], 1),
    (TWO_ABOVE, [thing("red circle", 0, 2), thing("red circle", 2, 2), thing("red square", 0, 0)], 3 / 4),
    # numeracy
    (TWO, spread("red circle", "blue circle"), 1),
    (TWO, spread("red circle"), 1 / 2),
    (TWO, spread("red circle", "blue circle", "red circle"), 1 / 2),
    (TWO, spread("red circle", "blue circle", "red circle", "red circle"), 0),
    (TWO, spread("red circle", "blue square"), 1 / 2),
    (TWO_AND_ONE, spread("red circle", "green square", "red circle"), 1),
    (TWO_AND_ONE, spread("red circle", "green square", "green circle"), (1 + 1 / 2 + 1) / 3),
    (TWO_AND_ONE, spread("red circle", "green square", "red square"), (1 + 1 / 2 + 1) / 3),
    (TWO_AND_ONE, spread("red circle", "green square"), 2 / 3),
    # complex: three attributes a thing and the relation
    (COMPLEX, [thing("striped red circle", 0), thing("blue square", 1)], 1),
    (COMPLEX, [thing("striped red circle", 1), thing("blue square", 0)], 2 / 3),
    (COMPLEX, [thing("red circle", 0), thing("blue square", 1)], (2 / 3 + 1 + 1) / 3),
    (COMPLEX, [thing("green cross", 0), thing("striped green cross", 1)], 1 / 3),  # the relation and nothing else
    # non: things and the bond
    (SAME, spread("red circle", "red square"), 1),
    (SAME, spread("red circle", "blue square"), 2 / 3),
    (SAME, spread("red circle"), 1 / 3),
    (SAME, spread("red circle", "red cross"), 2 / 3),
    (SAME, spread("red circle", "blue square", "red square"), 2 / 3),  # the red square is chosen, the blue is surplus
    (DIFFERENT, spread("striped red circle", "red square"), 1),
    (DIFFERENT, spread("striped red circle", "striped red square"), 2 / 3),
    (DIFFERENT, spread("red circle", "blue square"), 2 / 3),
]


@pytest.mark.parametrize("spec, things, expected", CASES)
def test_scores_worked_out_by_hand(spec, things, expected):
    assert judge(things, spec) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("spec, things, expected", CASES)
def test_order_of_things_does_not_matter(spec, things, expected):
    for seed in range(3):
        shuffled = random.Random(seed).sample(things, len(things))
        assert judge(shuffled, spec) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", TASK_TYPES)
def test_order_of_things_does_not_matter_in_drawn_scenes(task):
    rng = np.random.default_rng(5)
    for _ in range(40):
        spec = spec_of(draw(rng, task))
        things = spoil(draw_scene(spec, rng), rng)
        shuffled = [things[i] for i in rng.permutation(len(things))]
        assert judge(shuffled, spec) == pytest.approx(judge(things, spec), abs=1e-12)


def test_a_part_without_attributes_takes_anything():
    assert judge(spread("red blob"), Spec((Part(),))) == 1


HOLDS = [
    # a's cell, b's cell, relations that hold (synonyms are added below)
    ((1, 0), (1, 1), {"above", "next to"}),
    ((1, 0), (1, 2), {"above"}),
    ((0, 0), (1, 1), {"next to"}),  # diagonal: neither offset is the larger
    ((0, 0), (1, 2), {"above"}),
    ((0, 0), (2, 1), {"left of"}),
    ((2, 2), (0, 1), {"right of"}),
    ((1, 2), (0, 0), {"below"}),
    ((0, 1), (1, 1), {"left of", "next to"}),
    ((2, 0), (0, 0), {"right of"}),
]
SYNONYMS = {"above": "on top of", "left of": "on the left of", "right of": "on the right of"}


@pytest.mark.parametrize("a, b, holding", HOLDS)
def test_relations(a, b, holding):
    holding = holding | {SYNONYMS[name] for name in holding if name in SYNONYMS}
    first, second = thing("red circle", *a), thing("red circle", *b)
    assert {name for name in LOCALITIES if relation_holds(first, second, name)} == holding


def test_a_relation_bears_a_pixel_of_slack():
    below = thing("red square", 1, 2)
    assert relation_holds(thing("red circle", 1.06, 0.94), below, "above")
    assert not relation_holds(thing("red circle", 0.06, 0.94), below, "above")


@pytest.mark.parametrize(
    "words, holding",
    [
        (("red circle", "red square"), {("color", "same"), ("texture", "same"), ("shape", "different")}),
        (("red circle", "striped blue circle"), {("color", "different"), ("texture", "different"), ("shape", "same")}),
        # of three, two are alike: neither the same nor all different
        (("red circle", "striped red square", "blue cross"), {("shape", "different")}),
    ],
)
def test_bonds(words, holding):
    things = spread(*words)
    asked = [(name, kind) for name in ("color", "texture", "shape") for kind in ("same", "different")]
    assert {bond for bond in asked if bond_holds(things, bond)} == holding


def test_spec_survives_its_dictionary():
    for spec in (OBJECT, COLOR, TEXTURE, ABOVE, TWO_AND_ONE, COMPLEX, SAME):
        assert Spec.from_dict(spec.to_dict()) == spec
    assert ABOVE.to_dict() == {
        "parts": [{"shape": "circle", "color": "red", "count": 1}, {"shape": "square", "color": "blue", "count": 1}],
        "locality": "above",
    }
