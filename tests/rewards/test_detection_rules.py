"""Detection rules: the published values exactly, and each mend of the published faults on a drawn example."""

from __future__ import annotations

import json

import pytest

from egrpo.rewards.detection_rules import (
    NEAR,
    QUIRKS,
    RULES,
    Detection,
    detection_prompt,
    detection_score,
    has_rule,
    iou,
    position_score,
)
from egrpo.types import PromptRecord

ROUNDING = 1e-15 * 8  # of sums in another order


def spatial(locality: str, first: str = "cat", second: str = "dog") -> PromptRecord:
    info = {"obj1": first, "obj2": second, "locality": locality}
    return PromptRecord("p", list(dict.fromkeys([first, second])), spatial_info=info, task_type="spatial")


def numeracy(**counts: int) -> PromptRecord:
    info = [{"obj_name": name, "num": number} for name, number in counts.items()]
    return PromptRecord("p", list(counts), numeracy_info=info, task_type="numeracy")


def objects(*nouns: str) -> PromptRecord:
    return PromptRecord("p", list(nouns), task_type="object")


def cat(*box: float, score: float = 0.9) -> Detection:
    return Detection("cat", box, score)


def dog(*box: float, score: float = 0.9) -> Detection:
    return Detection("dog", box, score)


def test_every_published_score(shared):
    cases = json.loads((shared / "golden" / "detector_scores.json").read_text())
    assert len(cases) == 120
    for case in cases:
        detections = [Detection(d["phrase"], d["box_cxcywh"], d["score"]) for d in case["detections"]]
        field = {"spatial": "spatial_info", "numeracy": "numeracy_info"}.get(case["task_type"])
        info = {field: case["info"]} if field else {}
        record = PromptRecord("p", case["nouns"], task_type=case["task_type"], **info)
        for rules, expected in case["expected"].items():
            assert detection_score(detections, record, rules=rules, quirks="reference") == pytest.approx(
                expected, abs=ROUNDING, rel=0
            ), case


def test_every_published_prompt(shared):
    cases = json.loads((shared / "golden" / "detection_prompts.json").read_text())
    assert cases
    for case in cases:
        assert detection_prompt(case["nouns"]) == (case["caption"], case["token_spans"])


def test_prompt_by_hand():
    assert detection_prompt(["hot air balloon", "cat"]) == (
        "hot air balloon . cat.",
        [[[0, 3], [8, 15]], [[18, 21]]],
    )


@pytest.mark.parametrize("rules, score", [("original", (1 + 1 + 0) / 3), ("strict", (1 + 0.5 + 0) / 3)])
def test_objects(rules, score):
    detections = [cat(0.2, 0.2, 0.1, 0.1), dog(0.5, 0.5, 0.1, 0.1), dog(0.8, 0.8, 0.1, 0.1)]
    assert detection_score(detections, objects("cat", "dog", "hat"), rules=rules) == pytest.approx(score)


def test_numbers():
    detections = [cat(0.2, 0.2, 0.1, 0.1), dog(0.5, 0.5, 0.1, 0.1), dog(0.8, 0.8, 0.1, 0.1)]
    assert detection_score(detections, numeracy(cat=1, dog=2)) == pytest.approx(1.0)
    assert detection_score(detections, numeracy(cat=2, dog=2)) == pytest.approx((0.2 + 1) / 2)
    assert detection_score(detections, numeracy(cat=1, dog=2, hat=1)) == pytest.approx(2 / 3)


# The drawn examples: the image is the frame, a letter the centre of a box of 0.2 x 0.2.
#
#   +---------+
#   |    C    |   C at (.5, .2)
#   |         |
#   |    D    |   D at (.5, .8)
#   +---------+
ABOVE = [cat(0.5, 0.2, 0.2, 0.2), dog(0.5, 0.8, 0.2, 0.2)]


@pytest.mark.parametrize("locality", ["above", "on top of", "on the top of"])
def test_above_and_on_top_of_are_scored_like_their_synonym(locality):
    assert detection_score(ABOVE, spatial(locality)) == pytest.approx(0.9)
    assert detection_score(ABOVE[::-1], spatial(locality, "dog", "cat")) == pytest.approx(0.4)  # the other way round
    known = locality == "on the top of"
    assert detection_score(ABOVE, spatial(locality), quirks="reference") == pytest.approx(0.9 if known else 0.4)


@pytest.mark.parametrize("locality", ["next to", "near", "on side of"])
def test_nearness_is_measured_in_fractions_of_the_image(locality):
    #   |C       D|   side by side, .8 apart: the published rule calls it near
    far = [cat(0.1, 0.5, 0.2, 0.2), dog(0.9, 0.5, 0.2, 0.2)]
    assert detection_score(far, spatial(locality)) == pytest.approx(0.4 + 0.5 * NEAR / 0.8)
    assert detection_score(far, spatial(locality), quirks="reference") == pytest.approx(0.9)
    #   |   CD    |   .2 apart
    near = [cat(0.4, 0.5, 0.2, 0.2), dog(0.6, 0.5, 0.2, 0.2)]
    assert detection_score(near, spatial(locality)) == pytest.approx(0.9)
    assert pytest.approx(150 / 384) == NEAR


def test_duplicates_are_suppressed_on_corner_boxes():
    #   |  [CC]   |   one cat found twice, shifted by a tenth of its size: corners overlap by IoU .68
    once = [cat(0.5, 0.5, 0.5, 0.5, score=0.9), cat(0.55, 0.55, 0.5, 0.5, score=0.8)]
    assert detection_score(once, numeracy(cat=1)) == pytest.approx(1.0)
    # Read as corners, [.5, .5, .5, .5] has no area and overlaps nothing.
    assert detection_score(once, numeracy(cat=1), quirks="reference") == pytest.approx(0.2)

    #   |[C [ ] C]|   two large cats whose corners overlap by IoU .45, and misread ones by .56
    two = [cat(0.1, 0.1, 0.7, 0.7, score=0.9), cat(0.25, 0.25, 0.7, 0.7, score=0.8)]
    assert detection_score(two, numeracy(cat=2)) == pytest.approx(1.0)
    assert detection_score(two, numeracy(cat=2), quirks="reference") == pytest.approx(0.2)


def test_duplicates_are_suppressed_before_surplus_objects_are_counted():
    twice = [cat(0.5, 0.5, 0.6, 0.6, score=0.9), cat(0.52, 0.5, 0.6, 0.6, score=0.8)]
    assert detection_score(twice, objects("cat")) == 1.0
    assert detection_score(twice, objects("cat"), quirks="reference") == 0.5
    #   cat (twice) above dog: one cat, so that the relation is judged
    scene = [cat(0.5, 0.2, 0.2, 0.2), cat(0.5, 0.21, 0.2, 0.2, score=0.5), dog(0.5, 0.8, 0.2, 0.2)]
    assert detection_score(scene, spatial("on the top of")) == pytest.approx(0.9)
    assert detection_score(scene, spatial("on the top of"), quirks="reference") == pytest.approx(0.3)


@pytest.mark.parametrize("phrase", ["hot air balloon", "hot balloon"])
def test_nouns_of_three_and_more_words_are_matched(phrase):
    found = [Detection(phrase, [0.5, 0.5, 0.2, 0.2], 0.9)]
    assert detection_score(found, objects("hot air balloon")) == 1.0
    assert detection_score(found, objects("hot air balloon"), quirks="reference") == float(phrase != "hot balloon")


def test_a_noun_of_its_own_is_not_taken_for_the_short_name_of_another():
    found = [
        Detection("hot balloon", [0.2, 0.5, 0.2, 0.2], 0.9),
        Detection("hot air balloon", [0.8, 0.5, 0.2, 0.2], 0.9),
    ]
    assert detection_score(found, objects("hot air balloon", "hot balloon")) == 1.0


def test_boxes_without_area():
    empty = [cat(0.2, 0.5, 0.0, 0.0), dog(0.8, 0.5, 0.0, 0.0)]
    for rules in RULES:
        assert detection_score(empty, spatial("left of"), rules=rules) == pytest.approx(0.9)
        assert detection_score(empty, spatial("left of"), rules=rules, quirks="reference") == pytest.approx(0.4)
        assert detection_score(empty, numeracy(cat=1, dog=1), rules=rules) == pytest.approx(1.0)


def test_two_objects_of_one_name_are_two_instances():
    #   |C       C|
    two = [cat(0.1, 0.5, 0.2, 0.2), cat(0.9, 0.5, 0.2, 0.2)]
    record = spatial("left of", "cat", "cat")
    assert detection_score(two, record) == pytest.approx(0.9)
    assert detection_score(two, spatial("above", "cat", "cat")) == pytest.approx(0.4)
    assert detection_score(two[:1], record) == pytest.approx(0.2)
    assert detection_score([*two, cat(0.5, 0.1, 0.2, 0.2)], record) == pytest.approx(0.2)
    assert detection_score([*two, cat(0.5, 0.1, 0.2, 0.2, score=0.5)], record, rules="original") == pytest.approx(0.9)
    assert detection_score(two, record, rules="original", quirks="reference") == 0.0


def test_overlap_and_diagonals_lower_the_position_score():
    assert position_score("left of", [0.4, 0.5, 0.4, 0.4], [0.6, 0.5, 0.4, 0.4]) == pytest.approx(0.1 * 3)  # IoU 1/3
    assert position_score("left of", [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]) == 0  # neither offset is larger
    assert position_score("left of", [0.1, 0.1, 0.1, 0.1], [0.9, 0.8, 0.1, 0.1]) == 1
    assert position_score("behind", [0.1, 0.1, 0.1, 0.1], [0.9, 0.8, 0.1, 0.1]) == 0
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)


def test_a_mirrored_image_scores_the_mirrored_relation():
    pairs = {"left of": "right of", "above": "above", "below": "below", "next to": "next to"}
    boxes = [[0.3, 0.6, 0.2, 0.3], [0.7, 0.5, 0.3, 0.2]]
    mirrored = [[1 - x, y, w, h] for x, y, w, h in boxes]
    for locality, other in pairs.items():
        assert position_score(locality, *boxes) == pytest.approx(position_score(other, *mirrored))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("quirks", QUIRKS)
def test_without_nouns_the_score_is_1_whatever_the_image(rules, quirks):
    record = PromptRecord("sunset", task_type="non")
    assert detection_score([], record, rules=rules, quirks=quirks) == 1.0
    assert not has_rule(record) and has_rule(objects("cat"))


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="rules='lenient'"):
        detection_score([], objects("cat"), rules="lenient")
    with pytest.raises(ValueError, match="needs spatial_info"):
        detection_score([], PromptRecord("p", ["cat"], task_type="spatial"))
    with pytest.raises(ValueError, match="no numeracy_info"):
        detection_score([], PromptRecord("p", ["cat"], task_type="numeracy"))
