"""What the released code does with plans and padding while it draws, each under a key of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from egrpo.policy import JanusPolicy
from egrpo.types import Rollout
from tests.policy.scripted import Scripted


def test_plan_top_k_cuts_plans_alone(make_policy) -> None:
    """The released code draws plans from the 50 most likely tokens, and images from all codes."""
    settings = {"seed": 3, "step": 1, "cot": True, "cfg_weight": 1.0}
    policy = make_policy()
    plain, cut = (policy.rollout(["a cat"], 8, plan_top_k=k, **settings) for k in (None, 2))
    for rollout, at_most in ((plain, 300), (cut, 2)):
        logits = plan_logits(policy, rollout)
        rank = (logits > logits.gather(-1, rollout.text.tokens[..., None])).sum(dim=-1)[rollout.text.mask]
        assert (rank < at_most).all() and bool((rank >= 2).any()) == (at_most > 2)
    # What is recorded is of the whole distribution, and images are drawn from all codes.
    torch.testing.assert_close(policy.score(cut).logps, cut.sampled.logps, atol=1e-5, rtol=0)
    assert policy.rollout(["a cat"], 8, top_k=1, **settings).image.logps.mean() > cut.image.logps.mean() + 0.5
    same = policy.rollout(["a cat"], 8, top_k=2, **settings)
    assert torch.equal(same.text.tokens, cut.text.tokens) and not torch.equal(same.image.tokens, cut.image.tokens)


@torch.no_grad()
def plan_logits(policy: JanusPolicy, rollout: Rollout) -> torch.Tensor:
    """[N, T, V], of a group, whose contexts have no padding."""
    ids = torch.cat([rollout.text.context_ids, rollout.text.tokens], dim=1)[:, :-1]
    hidden = policy.backbone.hidden(policy.backbone.embed_text(ids))[:, rollout.text.context_ids.shape[1] - 1 :]
    return policy.model.lm_head(hidden)


def test_plans_keep_white_space_where_they_are_not_stripped(make_policy, monkeypatch) -> None:
    settings = {"seed": 3, "step": 1, "cot": True, "cfg_weight": 1.0, "greedy": True}
    seen = []
    for strip in (True, False):
        policy = make_policy(max_plan_tokens=4, strip_plans=strip)
        space, a = policy.tokenizer(" a")["input_ids"]
        policy.model.lm_head = Scripted([[space, a, space, policy.tokenizer.eos_token_id]], monkeypatch)
        rollout = policy.rollout(["a cat"], 1, **settings)
        ids = rollout.image.context_ids[0].tolist()
        text = policy.tokenizer.decode(ids, skip_special_tokens=True)
        seen.append((rollout.plans[0], text))
    assert seen == [
        ("a", "User: a cat. a\n\nAssistant:"),
        (" a ", "User: a cat.  a\n\nAssistant:"),  # the message as a whole is stripped either way
    ]


@pytest.mark.parametrize("cfg_weight", [1.0, 3.0])
def test_published_padding_of_a_group_does_not_depend_on_other_groups(make_policy, cfg_weight: float) -> None:
    """Samples padded together are drawn and scored as if they were alone, however long the prompts of others are."""
    policy = make_policy(padding="published")
    settings: dict[str, Any] = {"seed": 3, "step": 1, "cot": True, "cfg_weight": cfg_weight, "guided_logps": True}
    prompts = ["a cat", "three brown dogs under a very long wooden table"]
    both = policy.rollout(prompts, 4, padded_together=4, **settings)
    scores = [policy.score(both[rows]) for rows in (slice(0, 4), slice(4, 8))]
    apart = []
    for i, prompt in enumerate(prompts):
        alone, rows = policy.rollout([prompt], 4, **settings), slice(4 * i, 4 * i + 4)
        assert torch.equal(both.image.tokens[rows], alone.image.tokens)
        torch.testing.assert_close(both.image.logps[rows], alone.image.logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(scores[i].logps[:, -16:], alone.image.logps, atol=1e-4, rtol=0)
        apart.append(alone)
    together = policy.rollout(prompts, 4, **settings)  # the shorter prompt gets the holes of the longer
    assert not torch.allclose(together.image.logps[:4], apart[0].image.logps, atol=1e-3)
    assert torch.equal(
        policy.rollout(prompts, 4, padded_together=4, chunk=3, **settings).image.tokens, both.image.tokens
    )
