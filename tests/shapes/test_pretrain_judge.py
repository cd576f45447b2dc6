"""How the tiny judge is trained: questions, packing, and a few steps from nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from egrpo.rewards.orm import AFTER, BEFORE, HEAD, TAIL
from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.pretrain_rewards import judge, judge_text, questions
from egrpo.shapes.pretrain_rewards.examples import draw_example, to_tensor, wrong_scene
from egrpo.shapes.prompts import draw_open, is_unseen_composition, split_of
from egrpo.shapes.scene import COLORS, LOCALITIES, Thing
from egrpo.shapes.scene import judge as judged
from egrpo.types import TASK_TYPES


@pytest.mark.parametrize("task", TASK_TYPES)
def test_edited_prompts_ask_for_what_their_words_say(task):
    rng = np.random.default_rng(0)
    for _ in range(20):
        record = draw_open(rng, task)
        for other in (option for group in questions.near(record) for option in group):
            assert other.prompt != record.prompt
            spec = spec_of(other)
            assert spec != spec_of(record)
            words = other.prompt.split(" ")
            for word in questions.read_words(other.prompt):
                value = getattr(spec.parts[word.part], word.attribute)
                said = words[word.index]
                known = questions.NOUNS | questions.ADJECTIVES | questions.COUNTS
                assert known.get(said, said) == value
            assert spec.locality is None or f" {spec.locality} " in other.prompt
            assert spec.bond is None or ("the same" in other.prompt) == (spec.bond[1] == "same")


def test_questions_carry_the_oracles_answer_and_keep_out_of_held_out_prompts():
    rng = np.random.default_rng(1)
    mended = 0
    for _ in range(60):
        record, things = draw_example(rng)
        wrong = wrong_scene(things, spec_of(record), rng)
        for shown in (things, wrong):
            asked = questions.questions_for(record, shown, 6, rng)
            assert asked[0][0] is record
            assert asked[0][1] == (shown is things)
            assert len({other.prompt for other, _ in asked}) == len(asked) <= 6
            for other, yes in asked:
                assert yes == (judged(shown, spec_of(other)) == 1)
                assert split_of(other) == "open" and not is_unseen_composition(other)
        mended += any(yes for _, yes in asked)
    assert mended > 20  # most single mistakes can be asked for


def test_question_is_the_rewards_token_by_token():
    tokenizer = judge_text.build_tokenizer(512)
    prompt = "a photo of two red crosses and one circle"
    assert f"{HEAD}<image>" == judge_text.HEAD
    assert judge_text.question(prompt) == f"{BEFORE}{prompt}{AFTER}{TAIL}"
    asked = tokenizer(BEFORE + prompt + AFTER, split_special_tokens=True).input_ids
    assert tokenizer(judge_text.question(prompt)).input_ids == asked + tokenizer(TAIL).input_ids
    assert len(asked) == 2 + len(prompt.split())  # the fixed sentences are a token each, and so is every word
    assert [len(tokenizer(word).input_ids) for word in ("yes", "no")] == [1, 1]
    odd = "ein Häuschen <image> 42"
    assert odd in tokenizer.decode(tokenizer(odd, split_special_tokens=True).input_ids)


@pytest.fixture(scope="module")
def packed() -> tuple[Any, Any, Any]:
    """An untrained judge, its tokenizer and packer."""
    torch.manual_seed(0)
    tokenizer = judge_text.build_tokenizer(512)
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "initializer_range": 0.3,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return judge.build_model(tokenizer, text, vision).eval(), tokenizer, judge_text.Packer(tokenizer)


def test_packed_questions_are_answered_as_single_ones(packed):
    """Several questions a picture in training, one in use: no question sees another, nor its place in the pack."""
    from egrpo.shapes.pretrain_rewards.judge_measure import scores

    model, tokenizer, packer = packed
    rng = np.random.default_rng(0)
    records, scenes = zip(*(draw_example(rng) for _ in range(3)), strict=True)
    pictures = np.stack([atlas.paint(atlas.encode(things, rng)) for things in scenes])
    asked = [questions.questions_for(r, things, 4, rng) for r, things in zip(records, scenes, strict=True)]
    batch = packer.pack(asked, [None, "top a red circle", None])
    hidden = judge.read_states(model, batch, to_tensor(pictures))[-1]
    logits = model.lm_head(hidden[batch.answers[:, 0], batch.answers[:, 1]]).detach()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    together = ((logits[:, yes] - logits[:, no]) / 0.3).sigmoid()
    prompts = [record.prompt for row in asked for record, _ in row]
    alone = scores(model, tokenizer, pictures[batch.answers[:, 0]], prompts)
    assert together.std() > 0.01
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_descriptions_and_nouns_are_where_they_should_be(packed):
    _, tokenizer, packer = packed
    rng = np.random.default_rng(0)
    record = draw_open(rng, "complex")
    batch = packer.pack([[(record, True)]], ["top a red circle"])
    at = batch.targets[0] != judge_text.IGNORE
    assert tokenizer.decode(batch.targets[0][at]) == "top a red circle<|im_end|>"
    assert tokenizer.decode(batch.ids[0, 1:][at[:-1]]) == "top a red circle"  # each predicts the next
    words = [tokenizer.decode(batch.ids[row, column]).strip() for row, column in batch.nouns.tolist()]
    assert words == [part.shape for part in spec_of(record).parts]


def test_demands_are_told_apart():
    record = next(r for r in iter(lambda: draw_open(np.random.default_rng(3), "spatial"), None))
    spec = spec_of(record)
    a, b = (Thing(p.shape, p.color or COLORS[0], "plain", 0.5, 0.5) for p in spec.parts)
    along = {(0, -1): (0, 1), (0, 1): (0, -1), (-1, 0): (1, 0), (1, 0): (-1, 0)}
    way = LOCALITIES[spec.locality or ""] or (1, 0)
    dx, dy = along[way]
    there = Thing(b.shape, b.color, b.texture, 1.5 + dx, 1.5 + dy)
    here = Thing(a.shape, a.color, a.texture, 1.5, 1.5)
    assert judge.demands_met([here, there], spec) == [1, 1, 1]
    assert judge.demands_met([here], spec)[:2] == [0, 0]
    surplus = Thing("circle", "red", "plain", 0.5, 2.5)
    assert judge.demands_met([here, there, surplus], spec)[:2] == [0, 1]


def test_judge_trains_and_loads(recipes, tmp_path):
    recipe = recipes["orm"] | {"pool": 16}
    recipe["vision"] = recipe["vision"] | {"steps": 3, "batch_size": 4}
    recipe["judge"] = recipe["judge"] | {"steps": 3, "batch_size": 3}
    judge.train(tmp_path, seed=0, **recipe)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert model.config.image_token_index == AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<image>")
    found = judge.measure(tmp_path, count=6)
    assert {"accuracy", "pairs", "malformed"} <= set(found)
    assert found["accuracy"] == pytest.approx((found["accuracy_right"] + found["accuracy_wrong"]) / 2)
