"""Traps of Janus and of transformers' own generate, each of which gives plausible and wrong results."""

from __future__ import annotations

import pytest
import torch
from transformers import JanusConfig

from egrpo.policy import JanusPolicy, load_janus, sample_image_tokens
from egrpo.policy.layout import image_context
from tests.policy.scripted import Scripted

BOS, EOS, PAD, BOI = 1, 2, 3, 4
DRAW = {"seed": 3, "step": 1, "cfg_weight": 1.0}


def test_no_top_k_cuts_the_codes(model) -> None:
    head = model.model.generation_head.vision_head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(-1e-3 * torch.arange(64))  # nearly flat: the first 50 codes are the top 50
    model.generation_config.update(bos_token_id=BOS, pad_token_id=PAD, do_sample=True, top_k=50)
    model.generation_config.generation_kwargs = {"boi_token_id": BOI}
    ids = torch.tensor([[BOS, 20 + i, 21, BOI] for i in range(8)])
    mask = torch.ones_like(ids)
    native = model.generate(ids, attention_mask=mask, generation_mode="image", guidance_scale=2.0, max_length=64)
    assert native.max() < 50  # the trap
    codes = sample_image_tokens(model, ids, mask, cfg_weight=2.0, generator=torch.Generator().manual_seed(0))
    assert 0.1 < (codes >= 50).float().mean() < 0.35  # 14 of 64


def test_transformers_ties_the_text_head_by_default_and_policies_keep_it(policy: JanusPolicy, tmp_path) -> None:
    assert JanusConfig().tie_word_embeddings is True  # the trap
    policy.export(tmp_path)
    again, _ = load_janus(tmp_path)
    assert again.config.tie_word_embeddings is False
    assert torch.equal(again.lm_head.weight, policy.model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.model.language_model.embed_tokens.weight)


def test_begin_of_image_stands_last_in_both_paddings() -> None:
    rows = [[BOS, 20, 21], [BOS, 30]]
    ids, mask = image_context(rows, PAD, BOI, "published")
    assert ids.tolist() == [[BOS, 20, 21, BOI], [BOS, 30, PAD, BOI]]  # padding before it, not after
    assert mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]
    ids, mask = image_context(rows, PAD, BOI, "exact")
    assert ids.tolist() == [[BOS, 20, 21, BOI], [PAD, BOS, 30, BOI]]
    assert mask.int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("padding", ["exact", "published"])
def test_begin_of_image_is_in_every_rollout_once(make_policy, padding: str) -> None:
    policy = make_policy(padding=padding)
    image = policy.rollout(["a cat", "three brown dogs"], 1, cot=False, **DRAW).image
    assert (image.context_ids[:, -1] == BOI).all() and image.context_mask[:, -1].all()
    assert ((image.context_ids == BOI).sum(dim=1) == 1).all()
    holes = ~image.context_mask[0]
    first, length = int(holes.nonzero()[0]), len(holes)
    wanted = range(int(holes.sum())) if padding == "exact" else range(first, length - 1)
    assert holes.nonzero().flatten().tolist() == list(wanted)


def test_nothing_after_the_first_end_of_sequence_counts(make_policy, monkeypatch) -> None:
    policy = make_policy(max_plan_tokens=5)
    a, b = policy.tokenizer("ab")["input_ids"]
    policy.model.lm_head = Scripted([[a, EOS, b, b, b], [a, b, a, b, a]], monkeypatch)
    rollout = policy.rollout(["a cat", "two dogs"], 1, cot=True, greedy=True, **DRAW)
    assert rollout.text is not None
    assert rollout.text.tokens.tolist() == [[a, EOS, EOS, EOS, EOS], [a, b, a, b, a]]
    assert rollout.text.mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert rollout.plans == ["a", "ababa"] and rollout.truncated.tolist() == [False, True]
    told = rollout.sampled
    assert told.mask.sum(dim=1).tolist() == [2 + 16, 5 + 16] and (told.logps[0, 2:5] == 0).all()
    ids = rollout.image.context_ids[0][rollout.image.context_mask[0]]
    assert EOS not in ids  # the plan's end is no part of the image's prompt


def test_a_plan_that_ends_with_the_limit_is_whole(make_policy, monkeypatch) -> None:
    policy = make_policy(max_plan_tokens=3)
    a, b = policy.tokenizer("ab")["input_ids"]
    policy.model.lm_head = Scripted([[a, b, EOS], [a, b, a]], monkeypatch)
    rollout = policy.rollout(["a cat", "two dogs"], 1, cot=True, greedy=True, **DRAW)
    assert rollout.truncated.tolist() == [False, True]
