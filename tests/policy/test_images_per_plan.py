"""Several images of one plan: which random numbers belong to what."""

from __future__ import annotations

import pytest
import torch

from egrpo.policy import JanusPolicy

PROMPTS = ["a red cat under two blue dogs", "a {hat}"]
DRAW = {"seed": 7, "step": 2, "cot": True, "cfg_weight": 3.0}


def test_plans_are_those_of_a_rollout_with_an_image_each(policy: JanusPolicy):
    shared = policy.rollout(PROMPTS, 6, **DRAW, images_per_plan=2)
    alone = policy.rollout(PROMPTS, 3, **DRAW)
    assert shared.plans == [plan for plan in alone.plans for _ in range(2)]
    assert shared.prompts == [prompt for prompt in alone.prompts for _ in range(2)]
    assert shared.text is not None and alone.text is not None
    for name in ("tokens", "mask", "logps", "entropy"):
        expected = getattr(alone.text, name).repeat_interleave(2, dim=0)
        torch.testing.assert_close(getattr(shared.text, name), expected, atol=1e-6, rtol=0)
    assert torch.equal(shared.truncated, alone.truncated.repeat_interleave(2))
    assert len(set(alone.plans[:3])) == 3


def test_images_of_one_plan_differ(policy: JanusPolicy):
    rollout = policy.rollout(PROMPTS, 6, **DRAW, images_per_plan=3)
    assert len(set(map(tuple, rollout.image.tokens.tolist()))) == 12
    assert len(set(rollout.plans)) == 4


def test_one_image_a_plan_is_the_default(policy: JanusPolicy):
    one, default = (policy.rollout(PROMPTS, 3, **DRAW, **more) for more in ({"images_per_plan": 1}, {}))
    assert one.plans == default.plans and torch.equal(one.image.tokens, default.image.tokens)


def test_scores_are_what_was_recorded(policy: JanusPolicy):
    rollout = policy.rollout(PROMPTS, 4, **DRAW, images_per_plan=2)
    torch.testing.assert_close(policy.score(rollout).entropy, rollout.sampled.entropy, atol=1e-5, rtol=0)


def test_samples_do_not_depend_on_batch_chunk_or_group(policy: JanusPolicy):
    whole = policy.rollout(PROMPTS, 6, **DRAW, images_per_plan=2)
    chunked = policy.rollout(PROMPTS, 6, **DRAW, images_per_plan=2, chunk=5)
    second = policy.rollout(PROMPTS[1:], 4, **DRAW, images_per_plan=2, sample_offset=2)
    assert torch.equal(whole.image.tokens, chunked.image.tokens) and whole.plans == chunked.plans
    assert torch.equal(whole.image.tokens[8:], second.image.tokens) and whole.plans[8:] == second.plans


def test_without_a_plan_there_is_nothing_to_share(policy: JanusPolicy):
    draw = DRAW | {"cot": False}
    shared, plain = policy.rollout(PROMPTS, 3, **draw, images_per_plan=2), policy.rollout(PROMPTS, 3, **draw)
    assert torch.equal(shared.image.tokens, plain.image.tokens)


@pytest.mark.parametrize(
    "images, offset, message", [(2, 0, "must divide"), (3, 1, "must divide"), (0, 0, "give at least 1")]
)
def test_a_group_is_made_of_whole_plans(policy: JanusPolicy, images: int, offset: int, message: str):
    with pytest.raises(ValueError, match=message):
        policy.rollout(PROMPTS, 3, **DRAW, images_per_plan=images, sample_offset=offset)
