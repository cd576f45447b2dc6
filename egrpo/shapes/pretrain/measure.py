"""Verdict on a shipped model: is it middling, does guidance help, is there entropy for the method to work on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from egrpo.policy import JanusPolicy
from egrpo.shapes import oracle
from egrpo.types import PromptRecord


def strict_share(policy: JanusPolicy, records: list[PromptRecord], **settings: Any) -> tuple[float, float]:
    """(strict, soft) oracle means of one fresh sample a prompt, judged on the decoder's pixels."""
    scores, _ = _draw(policy, records, 1, **settings)
    return float((scores == 1).mean()), float(scores.mean())


def _draw(policy: JanusPolicy, records: list[PromptRecord], group: int, **settings: Any) -> tuple[np.ndarray, Any]:
    drawn = {"seed": 0, "step": 0, "cot": True, "cfg_weight": 1.0, "chunk": 256} | settings
    rollout = policy.rollout(records, group, **drawn)
    pixels = rollout.pixels.cpu().numpy()
    repeated = [record for record in records for _ in range(group)]
    scores = [oracle.score(image, record) for image, record in zip(pixels, repeated, strict=True)]
    return np.array(scores).reshape(len(records), group), rollout


@torch.no_grad()
def measure_model(policy: JanusPolicy, records: list[PromptRecord], group: int = 8) -> dict[str, float]:
    """What the world promises of its model, on `records` with `group` fresh samples each.

    `strict` and `soft`: oracle means. `pass_at_8`: share of prompts with a right sample in the group. `entropy_text`,
    `entropy_image`: mean over tokens, divided by log V. `guided_X`: strict under classifier-free guidance of X.
    `no_cot`: strict without a plan. `temperature_0.7`: strict when sampled colder. `plans_distinct`: distinct plans a
    prompt over samples.
    """
    scores, rollout = _draw(policy, records, group)
    distinct = len(set(zip(rollout.prompts, rollout.plans, strict=True))) / len(rollout)
    return {
        "strict": float((scores == 1).mean()),
        "soft": float(scores.mean()),
        "pass_at_8": float((scores == 1).any(1).mean()),
        "entropy_text": rollout.text.entropy[rollout.text.mask].mean().item(),
        "entropy_image": rollout.image.entropy.mean().item(),
        "plans_distinct": distinct,
        "plans_truncated": rollout.truncated.float().mean().item(),
        "guided_1.5": strict_share(policy, records, cfg_weight=1.5)[0],
        "guided_2": strict_share(policy, records, cfg_weight=2.0)[0],
        "guided_1": strict_share(policy, records, cfg_weight=1.0)[0],
        "no_cot": strict_share(policy, records, cot=False)[0],
        "temperature_0.7": strict_share(policy, records, temperature=0.7)[0],
    }
