"""Proof, in the run that measures, that both sides compute the same; a difference ends the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from egrpo.algorithm import policy_loss
from egrpo.types import Rollout, TokenScores
from experiments.speed import published
from experiments.speed.meter import Meter
from experiments.speed.sides import Ours, rollout, scores
from experiments.speed.subject import Subject

TOLERANCES = {
    "greedy plan tokens that differ": 0.0,
    "greedy image tokens that differ": 0.0,
    "log-probabilities": 1e-4,
    "entropies": 1e-5,
    "token advantages": 1e-6,
    "gradient, relative": 1e-4,
}


def check(subject: Subject, ours: Ours) -> dict[str, float]:
    """Largest differences by name, in float32 whatever the model's type.

    Greedy tokens of two prompts in one batch (of different length where the prompts are), then two samples of each
    prompt: scores of the same tokens, token advantages from the same entropies, and the gradient of the whole loss. The
    gradient is left out for weights of lower precision, whose copies in float32 would not all fit.

    Raises:
        ValueError: something differs by more than its tolerance.
    """
    with float32(subject.policy.model):
        found = greedy_differences(subject)
        found |= score_differences(subject, ours, gradients=subject.settings.dtype == "float32")
    allowed = TOLERANCES | {"entropies": float(subject.settings.entropy_tolerance)}
    wrong = [
        f"{name} {value:.2e} (at most {allowed[name]:.0e})"
        for name, value in found.items()
        if not value <= allowed[name]  # NaN is wrong too
    ]
    if wrong:
        raise ValueError(f"the published procedure and egrpo do not compute the same: {', '.join(wrong)}")
    return found


def greedy_differences(subject: Subject) -> dict[str, float]:
    """Tokens, counted ones of plans and all of images."""
    policy, cfg = subject.policy, subject.cfg
    records = subject.records[:2]
    weight = float(cfg.rollout.cfg_weight)
    with endless(policy) if subject.settings.checkpoint is None else nullcontext():
        mine = policy.rollout(records, 1, seed=0, step=0, cot=True, cfg_weight=weight, greedy=True)
        policy.eval()
        text, image = rollout(policy, records, None, weight, 1.0, Meter())
    assert mine.text is not None
    found = (mine.text.tokens, mine.image.tokens)
    same_length = found[0].shape == text.tokens.shape
    plans = int((found[0] != text.tokens).sum()) if same_length else max(found[0].numel(), text.tokens.numel())
    return {
        "greedy plan tokens that differ": float(plans),
        "greedy image tokens that differ": float((found[1] != image.tokens).sum()),
    }


def score_differences(subject: Subject, ours: Ours, *, gradients: bool) -> dict[str, float]:
    """Of scores, token advantages and gradient, on what egrpo has drawn."""
    policy, cfg = subject.policy, subject.cfg
    weight, temperature = float(cfg.rollout.cfg_weight), float(cfg.rollout.temperature)
    drawn = policy.rollout(
        subject.records[:2], 2, seed=int(cfg.seed), step=0, cot=True, cfg_weight=weight, temperature=temperature
    )
    assert drawn.text is not None
    policy.train()
    with torch.set_grad_enabled(gradients):
        mine = policy(drawn, temperature=temperature)
        logps, entropy = scores(policy.model, drawn.text, drawn.image, temperature)
    advantages = torch.tensor([1.0, -0.5, 0.25, -1.0], device=logps.device)
    shaped, _ = ours.module.entropy_policy(advantages, mine.entropy, mine.mask, mine.is_image)
    plain = published.token_advantages(advantages, mine.entropy, mine.mask, drawn.text.tokens.shape[1])
    found = {
        "log-probabilities": largest(mine.logps - logps, mine.mask),
        "entropies": largest(mine.entropy - entropy, mine.mask),
        "token advantages": largest(shaped - plain.to(shaped.device), mine.mask),
    }
    if gradients:
        found["gradient, relative"] = gradient_difference(ours, drawn, mine, logps, shaped)
    return found


def gradient_difference(ours: Ours, drawn: Rollout, mine: TokenScores, logps: Tensor, shaped: Tensor) -> float:
    """Norm of the difference over the norm; a reference of other log-probabilities, so that the KL term counts."""
    beta = float(ours.module.objective.beta)
    reference = mine.logps.detach() - 0.1
    loss, _ = policy_loss(mine.logps, reference, shaped, mine.mask, beta=beta)
    first = gradient(loss, ours.trained)
    second = gradient(published.loss(logps, reference, shaped, mine.mask, beta, mine.mask.sum()), ours.trained)
    apart = sum(float((a - b).square().sum()) for a, b in zip(first, second, strict=True))
    size = sum(float(a.square().sum()) for a in first)
    return (apart / size) ** 0.5


def gradient(loss: Tensor, parameters: list[Any]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters))


def largest(difference: Tensor, mask: Tensor) -> float:
    return float(difference.detach()[mask].abs().max())


@contextmanager
def endless(policy: Any) -> Iterator[None]:
    """End-of-sequence has logit 0 within: random weights that end plans by chance would end greedy ones at once."""
    row = policy.model.lm_head.weight.data[policy.tokenizer.eos_token_id]
    kept = row.clone()
    row.zero_()
    try:
        yield
    finally:
        row.copy_(kept)


@contextmanager
def float32(model: Any) -> Iterator[None]:
    """Weights in float32 within; bfloat16 weights come back unchanged."""
    kind = next(model.parameters()).dtype
    model.float()
    try:
        yield
    finally:
        model.to(kind)
