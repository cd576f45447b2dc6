"""Training examples: where text stands, what is learned, and how often each deliberate change is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from egrpo.shapes import atlas
from egrpo.shapes.oracle import detect, spec_of
from egrpo.shapes.pretrain import language
from egrpo.shapes.pretrain.language import ExampleMaker
from egrpo.shapes.scene import Part, Spec, Thing, judge
from tests.shapes.helpers import keys, read_plan

COUNT = 600


@pytest.fixture
def maker(tokenizer, templates):
    def make(seed: int = 0, unconditional: float = 0.1, planless: float = 0.15) -> ExampleMaker:
        return ExampleMaker(tokenizer, templates, seed=seed, unconditional=unconditional, planless=planless)

    return make


@pytest.fixture
def asked(monkeypatch) -> list[Any]:
    """The records that a maker draws, in order."""
    records: list[Any] = []
    draw = language.draw_open
    monkeypatch.setattr(language, "draw_open", lambda *args: records.append(draw(*args)) or records[-1])
    return records


def real(batch, i: int) -> list[int]:
    return batch.image_ids[i][batch.image_mask[i]].tolist()


def plan_of(batch, i: int, tokenizer) -> str:
    learned = batch.text_targets[i][batch.text_targets[i] != -100].tolist()
    return tokenizer.decode(learned[:-1])


def test_text_rows_hold_prompt_plan_and_end_and_only_plan_and_end_are_learned(maker, asked, tokenizer):
    batch = maker().batch(32, 0.0, 0.0)
    for i, record in enumerate(asked):
        ids, targets, mask = batch.text_ids[i], batch.text_targets[i], batch.text_mask[i]
        prompt = tokenizer(f"User: Plan: {record.prompt}\n\nAssistant:").input_ids
        plan = plan_of(batch, i, tokenizer)
        assert plan.startswith(" ")
        expected = [*prompt, *tokenizer(plan, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        length = len(expected)
        assert ids.tolist() == expected + [tokenizer.pad_token_id] * (len(ids) - length)
        assert mask.tolist() == [True] * length + [False] * (len(ids) - length)
        first = len(prompt) - 1  # the prompt's last token is followed by the plan's first
        assert targets.tolist() == [-100] * first + expected[first + 1 :] + [-100] * (len(ids) - length + 1)
    assert batch.text_mask.any(0).all()


def test_image_rows_hold_prompt_and_plan_left_padded_with_begin_of_image_last(maker, asked, tokenizer):
    batch = maker(unconditional=0.0, planless=0.0).batch(32, 0.0, 0.0)
    begin = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    for i, record in enumerate(asked):
        plan = plan_of(batch, i, tokenizer)
        expected = tokenizer(f"User: {record.prompt}.{plan}\n\nAssistant:").input_ids + [begin]
        missing = batch.image_ids.shape[1] - len(expected)
        assert batch.image_ids[i].tolist() == [tokenizer.pad_token_id] * missing + expected
        assert batch.image_mask[i].tolist() == [False] * missing + [True] * len(expected)
    assert batch.image_mask.any(0).all()


def test_planless_rows_hold_the_prompt_alone(maker, asked, tokenizer):
    batch = maker(unconditional=0.0, planless=1.0).batch(16, 0.0, 0.0)
    begin = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    for i, record in enumerate(asked):
        assert real(batch, i) == tokenizer(f"User: {record.prompt}\n\nAssistant:").input_ids + [begin]


def test_unconditional_rows_hold_only_padding_between_first_and_last(maker, tokenizer):
    conditional = maker(unconditional=0.0).batch(16, 0.0, 0.0)
    batch = maker(unconditional=1.0).batch(16, 0.0, 0.0)
    assert torch.equal(batch.image_mask, conditional.image_mask)  # as long as with text, and counted
    assert torch.equal(batch.codes, conditional.codes)
    begin = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    for i in range(16):
        inner = len(real(conditional, i)) - 2
        assert real(batch, i) == [tokenizer.bos_token_id] + [tokenizer.pad_token_id] * inner + [begin]


def scene_of(plan: str) -> list[Thing]:
    return [Thing(s, c, t, x + 0.5, y + 0.5) for s, c, t, x, y in read_plan(plan)]


def shares(batch, records, tokenizer) -> dict[str, float]:
    """How often plans are wrong, images differ from their plan, and image prompts lack text or plan."""
    pad = tokenizer.pad_token_id
    wrong, differ, blank, planless = [], [], [], []
    for i, record in enumerate(records):
        plan = plan_of(batch, i, tokenizer)
        drawn = detect(atlas.paint(batch.codes[i].numpy()))
        wrong.append(judge(scene_of(plan), spec_of(record)) < 1)
        differ.append(keys(drawn) != keys(scene_of(plan)))
        if differ[-1]:
            assert judge(drawn, spec_of(record)) < 1
        ids = real(batch, i)
        blank.append(set(ids[1:-1]) == {pad})
        if not blank[-1]:
            planless.append(ids[:-1] == tokenizer(f"User: {record.prompt}\n\nAssistant:").input_ids)
    rows = {"wrong": wrong, "differ": differ, "blank": blank, "planless": planless}
    return {name: float(np.mean(values)) for name, values in rows.items()}


@pytest.mark.parametrize("plans, images", [(0.0, 0.0), (0.3, 0.3), (0.6, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_shares_of_changes_are_those_asked_for(plans, images, maker, asked, tokenizer):
    found = shares(maker(seed=3).batch(COUNT, plans, images), asked, tokenizer)
    expected = {"wrong": plans, "differ": images, "blank": 0.1, "planless": 0.15}
    for name, share in expected.items():
        assert found[name] == pytest.approx(share, abs=3.5 * (share * (1 - share) / COUNT) ** 0.5 + 1e-9), name


def test_records_are_open_and_every_task_is_drawn(maker, asked):
    maker().batch(200, 0.0, 0.0)
    assert len({record.task_type for record in asked}) == 8


def test_batches_follow_from_the_seed(maker):
    def fields(seed: int) -> list[list[Any]]:
        return [value.tolist() for value in vars(maker(seed=seed).batch(8, 0.3, 0.3)).values()]

    assert fields(5) == fields(5) != fields(6)


def test_spoiling_goes_on_until_the_mistake_counts():
    # Texture is not asked for, so that most single changes of a lone circle touch nothing asked for.
    spec = Spec((Part("circle"),))
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert judge(language.spoil_until_wrong([Thing("circle", "red", "plain", 0.5, 0.5)], spec, rng), spec) < 1
