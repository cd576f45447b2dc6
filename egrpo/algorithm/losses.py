"""The token-level policy-gradient loss of GRPO with its KL term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from egrpo.base.errors import UserError

LARGEST_LOG_RATIO = 20.0  # nats; the exponential of 89 overflows float32, and squares of gradients do from 44 on


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference): exp(ref - logp) - (ref - logp) - 1, never negative.

    Source: DeepSeekMath (arXiv 2402.03300), eq. 4; the estimator k3 of Schulman, "Approximating KL Divergence".

    Args:
        logps: [N, T], nats, of the drawn tokens under the policy.
        ref_logps: [N, T], nats, under the reference.

    Returns:
        [N, T], nats, with gradient.
    """
    log_ratio = ref_logps - logps
    return bounded_exp(log_ratio, torch.expm1) - log_ratio


def bounded_exp(log_ratio: Tensor, exponential: Callable[[Tensor], Tensor] = torch.exp) -> Tensor:
    """exp(x) up to `LARGEST_LOG_RATIO`, and its tangent there beyond: finite, with a gradient that keeps its sign.

    Up to the bound, value and gradient are those of `exponential` (torch.exp or torch.expm1) to the last digit.
    """
    bound = torch.full((), LARGEST_LOG_RATIO, dtype=log_ratio.dtype, device=log_ratio.device)
    tangent = exponential(bound) + bound.exp() * (log_ratio - bound)
    return torch.where(log_ratio > bound, tangent, exponential(log_ratio.clamp(max=LARGEST_LOG_RATIO)))


def policy_loss(
    logps: Tensor,
    ref_logps: Tensor,
    token_advantages: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.01,
    old_logps: Tensor | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over counted tokens of -(ratio * A - beta * k3), divided by one explicit denominator.

    The KL term stays on every counted token, whatever its advantage. Masked positions may hold anything, inf and nan
    included: they reach neither the loss nor the gradient.

    Source: DeepSeekMath (arXiv 2402.03300), eq. 3, averaged over the batch's tokens as in T2I-R1 GRPO; the on-policy
    case is the published one. Separate clip bounds as in DAPO (arXiv 2503.14476), eq. 10.

    Args:
        logps: [N, T], nats, with gradient.
        ref_logps: [N, T], nats, under the reference.
        token_advantages: [N, T], from an entropy policy.
        mask: [N, T] bool, True = counted.
        beta: weight of the KL term.
        old_logps: [N, T], nats, at sampling time; None = on-policy, a ratio of 1 that carries the gradient.
        clip_low: the ratio is clipped to at least 1 - clip_low; None = no lower bound.
        clip_high: the ratio is clipped to at most 1 + clip_high; None = no upper bound.
        denominator: tokens to divide by, e.g. those of the global batch, or [N], each sequence's own number, e.g. its
            tokens times the sequences of the global batch (GRPO's mean over sequences of means over tokens); None =
            mask.sum(). 0 counts as 1.

    Returns:
        loss, 0-d, and detached 0-d metrics divided by the same denominator: "kl" (mean k3) and "clip_fraction"
        (share of tokens where the clipped objective is the smaller).

    Raises:
        UserError: unequal shapes, a denominator neither 0-d nor [N], clip_low outside 0..1, clip_high below 0.
    """
    _check_shapes(logps, ref_logps=ref_logps, token_advantages=token_advantages, mask=mask, old_logps=old_logps)
    _check_clip(clip_low, clip_high)
    mask = mask.bool()
    dtype = torch.promote_types(logps.dtype, torch.float32)

    tokens = _tokens(denominator, mask).to(dtype)

    def counted(values: Tensor) -> Tensor:
        # Before any arithmetic: garbage at masked positions meets no exp whose gradient would be nan, and with zeros
        # all through, ratio * A and k3 are 0 there.
        return torch.where(mask, values.to(dtype), 0.0)

    logps = counted(logps)
    advantages = counted(token_advantages.detach())
    ratio = bounded_exp(logps - (logps.detach() if old_logps is None else counted(old_logps.detach())))
    objective, clipped = _clipped_objective(ratio, advantages, clip_low, clip_high)
    kl = k3_kl(logps, counted(ref_logps.detach()))
    metrics = {"kl": _per_token(kl.detach(), tokens), "clip_fraction": _per_token(clipped.to(dtype), tokens)}
    return _per_token(beta * kl - objective, tokens), metrics


def _tokens(denominator: Tensor | float | None, mask: Tensor) -> Tensor:
    """What sums are divided by, 0-d or [N] of N sequences; 0 becomes 1."""
    total = mask.sum() if denominator is None else torch.as_tensor(denominator, device=mask.device).detach()
    if total.dim() and total.shape != mask.shape[:1]:
        raise UserError(f"policy_loss: denominator has shape {list(total.shape)}; pass one number, or [N]")
    return torch.where(total == 0, 1, total)


def _per_token(values: Tensor, tokens: Tensor) -> Tensor:
    """Sum of [N, T] over `tokens`, each sequence over its own where there are [N]; 0-d."""
    return values.sum() / tokens if tokens.dim() == 0 else (values.sum(dim=1) / tokens).sum()


def _check_shapes(logps: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and value.shape != logps.shape:
            raise UserError(
                f"policy_loss: {name} has shape {list(value.shape)}, logps {list(logps.shape)}; pass equal [N, T]"
            )


def _check_clip(clip_low: float | None, clip_high: float | None) -> None:
    if clip_low is not None and not 0 <= clip_low <= 1:
        raise UserError(f"policy_loss: clip_low is {clip_low}; set it within 0..1 (lower bound 1 - clip_low) or null")
    if clip_high is not None and not clip_high >= 0:
        raise UserError(f"policy_loss: clip_high is {clip_high}; set 0 or more (upper bound 1 + clip_high) or null")


def _clipped_objective(
    ratio: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic objective [N, T], and where [N, T] the clipped side is the smaller one."""
    plain = ratio * advantages
    if clip_low is None and clip_high is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    lower = None if clip_low is None else 1.0 - clip_low
    upper = None if clip_high is None else 1.0 + clip_high
    clipped = ratio.clamp(lower, upper) * advantages
    return torch.minimum(plain, clipped), clipped.detach() < plain.detach()
