"""How the tiny detector is trained: boxes, matching, captions, and a few steps from nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GroundingDinoForObjectDetection

from egrpo.rewards.detection_rules import detection_prompt
from egrpo.shapes import atlas, oracle
from egrpo.shapes.atlas import place
from egrpo.shapes.pretrain_rewards import captions, dino, dino_measure
from egrpo.shapes.pretrain_rewards.boxes import box_of, overlaps
from egrpo.shapes.pretrain_rewards.dino_loss import Targets, focal, match, matched_loss
from egrpo.shapes.pretrain_rewards.examples import draw_example, to_tensor
from egrpo.shapes.prompts import phrase
from egrpo.shapes.scene import SHAPES, Part, Thing

# ---- boxes and matching


def test_overlap_of_two_boxes_by_hand():
    """Squares of side .4 that share .2 x .4: IoU .08 / .24, and the hull is .6 x .4."""
    a, b = torch.tensor([0.3, 0.5, 0.4, 0.4]), torch.tensor([0.5, 0.5, 0.4, 0.4])
    iou, giou = overlaps(a, b)
    assert iou.item() == pytest.approx(1 / 3, abs=1e-6)
    assert giou.item() == pytest.approx(1 / 3, abs=1e-6)  # the hull is the union
    apart = overlaps(a, torch.tensor([0.9, 0.5, 0.2, 0.4]))[1]  # hull .9 x .4 = .36, union .16 + .08
    assert apart.item() == pytest.approx(-(0.36 - 0.24) / 0.36, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_surround_what_is_drawn(shape):
    thing = place(shape, "red", "plain", 5)
    picture = atlas.paint(atlas.encode([thing], np.random.default_rng(0)))
    rows, columns = np.where((picture[..., 0] > 150) & (picture[..., 2] < 100))
    x, y, width, height = box_of(thing, drawn=True)
    assert (x - width / 2, x + width / 2) == pytest.approx((columns.min() / 48, (columns.max() + 1) / 48))
    assert (y - height / 2, y + height / 2) == pytest.approx((rows.min() / 48, (rows.max() + 1) / 48))
    assert box_of(oracle.detect(picture)[0], drawn=False) == pytest.approx((x, y, width, height))


def two_things() -> Targets:
    """One picture, a thing at the left (token 0) and one at the right (tokens 1 and 2)."""
    boxes = torch.tensor([[[0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]]])
    tokens = torch.tensor([[[1.0, 0, 0], [0, 1, 1]]])
    return Targets(boxes, tokens, torch.ones(1, 2, dtype=torch.bool))


def test_matching_by_hand():
    """Boxes decide where names are equally sure, names where boxes are equally far."""
    boxes = torch.tensor([[[0.8, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2]]])
    assert match(torch.zeros(1, 3, 3), boxes, two_things(), 0.25).tolist() == [[1, -1, 0]]
    logits = torch.tensor([[[-9.0, 2, 2], [-9, -9, -9], [9, -9, -9]]])
    middle = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 3, 4)
    assert match(logits, middle, two_things(), 0.25).tolist() == [[1, -1, 0]]
    padded = Targets(two_things().boxes, two_things().tokens, torch.tensor([[True, False]]))
    assert match(logits, middle, padded, 0.25).tolist() == [[-1, -1, 0]]


def test_matched_loss_by_hand():
    """One proposal, exact in place and half sure of everything, for a thing with token 0; token 2 is padding."""
    targets = Targets(
        torch.tensor([[[0.3, 0.5, 0.4, 0.4]]]), torch.tensor([[[1.0, 0, 0]]]), torch.ones(1, 1, dtype=torch.bool)
    )
    mask = torch.tensor([[True, True, False]])
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])
    naming, distance, giou = matched_loss(torch.zeros(1, 1, 3), boxes, targets, mask, 0.25).tolist()
    half = 0.5**2 * math.log(2)  # focal factor times cross-entropy
    assert naming == pytest.approx(0.25 * half + 0.75 * half, abs=1e-6)
    assert distance == pytest.approx(0.2, abs=1e-6)
    assert giou == pytest.approx(1 - 1 / 3, abs=1e-6)


def test_focal_loss_forgives_what_is_right():
    logits = torch.tensor([4.0, -4.0])
    right = focal(logits, torch.tensor([1.0, 0.0]), 0.25)
    wrong = focal(logits, torch.tensor([0.0, 1.0]), 0.25)
    assert (right < 1e-4).all()
    assert (wrong > 0.9).all()


def test_unmatched_proposals_learn_to_be_silent():
    logits = torch.zeros(1, 3, 3, requires_grad=True)
    boxes = torch.tensor([[[0.8, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2]]])
    matched_loss(logits, boxes, two_things(), torch.ones(1, 3, dtype=torch.bool), 0.25)[0].backward()
    assert logits.grad is not None
    assert (logits.grad[0, 1] > 0).all()  # downhill is down
    assert logits.grad[0, 2].sign().tolist() == [-1, 1, 1]


# ---- captions


def test_tokenizer_has_the_ids_of_the_model_code():
    tokenizer = captions.build_tokenizer()
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]", ".", "?"]) == [0, 101, 102, 1012, 1029]
    assert tokenizer.unk_token_id not in tokenizer("A Striped crosses. zebra, 7?").input_ids


def test_caption_and_token_positions_are_the_rewards():
    tokenizer = captions.build_tokenizer()
    said = ["striped red circle", "figure", "blue cross"]
    text, spans = detection_prompt(said)
    assert captions.caption_of(said) == text
    encoding = tokenizer(text)
    for pairs, where in zip(spans, captions.token_positions(said), strict=True):
        ends = [encoding.char_to_token(pairs[0][0]), encoding.char_to_token(pairs[-1][0])]
        assert ends == [where[0], where[-1]]


def test_targets_name_every_true_phrase_and_no_other():
    things = [place("circle", "red", "plain", 0), place("circle", "blue", "striped", 8)]
    said = [("red circle", Part("circle", "red")), ("circle", Part("circle")), ("cross", Part("cross"))]
    targets = captions.make_targets([(things, True)], [said], 10)
    assert targets.present.tolist() == [[True, True]]
    assert [row.nonzero().flatten().tolist() for row in targets.tokens[0]] == [[1, 2, 4], [4]]
    nothing = captions.make_targets([([Thing(None, "red", "plain", 1.0, 1.0)], False)], [said], 10)
    assert not nothing.present.any()


def test_phrases_are_true_and_false_about_equally():
    rng = np.random.default_rng(0)
    true = 0
    for _ in range(400):
        _, things = draw_example(rng)
        text, part = captions.draw_phrase(things, rng)
        assert text == phrase(part) or text.endswith(" figure")
        true += any(captions.shows(part, thing) for thing in things)
    assert 120 < true < 280


# ---- training


def test_detector_trains_and_loads(recipes, tmp_path):
    recipe = recipes["gdino"] | {"pool": 16}
    recipe["backbone"] = recipe["backbone"] | {"steps": 3, "batch_size": 4}
    recipe["detector"] = recipe["detector"] | {"steps": 3, "batch_size": 4}
    dino.train(tmp_path, seed=0, **recipe)
    model = GroundingDinoForObjectDetection.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(tmp_path)("red circle.").input_ids[-2:] == [1012, 102]
    found = dino_measure.measure(tmp_path, count=4)
    assert set(found) == {f"{a}{b}" for a in ("", "noun_", "malformed_") for b in ("recall", "precision", "exact")}
    assert all(0 <= value <= 1 for value in found.values())


def test_detector_learns_one_picture(recipes):
    """The same picture and caption again and again: naming and place both improve."""
    torch.manual_seed(0)
    model, tokenizer = dino.build_model(**recipes["gdino"]["model"]), captions.build_tokenizer()
    things = [place("circle", "red", "plain", 0), place("cross", "blue", "striped", 7)]
    pixels = to_tensor(atlas.paint(atlas.encode(things, np.random.default_rng(0)))[None])
    said = [[("red circle", Part("circle", "red")), ("green cross", Part("cross", "green")), ("cross", Part("cross"))]]
    ids, mask = captions.encode(tokenizer, [[text for text, _ in row] for row in said])
    targets = captions.make_targets([(things, True)], said, ids.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
        loss, _ = dino.detection_loss(model, output, targets, mask, 0.25)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found = dino_measure.detect(model.eval(), tokenizer, pixels, [[text for text, _ in said[0]]])[0]
    assert [len(boxes) for boxes in found] == [1, 0, 1]
    for boxes, thing in ((found[0], things[0]), (found[2], things[1])):
        assert overlaps(boxes[0], torch.tensor(box_of(thing, drawn=True)))[0] > 0.5
