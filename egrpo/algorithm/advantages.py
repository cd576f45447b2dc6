"""Sequence advantages relative to the other samples of the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from egrpo.base.errors import UserError


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """Centres and scales rewards within each group: A = (r - mean) / (std + eps), std unbiased.

    Source: DeepSeekMath (arXiv 2402.03300), outcome supervision, with the eps of T2I-R1 GRPO.

    Args:
        rewards: [N], one mixed reward a sequence; the `group_size` samples of a prompt are consecutive.
        group_size: samples a prompt, at least 2.
        eps: added to the standard deviation, in units of reward.

    Returns:
        [N] advantages without gradient, float32 (float64 stays float64). A group of equal rewards gets exact zeros.

    Raises:
        UserError: rewards not [N], group_size below 2, N not a multiple of group_size, rewards NaN or infinite.
    """
    if rewards.dim() != 1:
        raise UserError(
            f"group_advantages: rewards must have shape [N], got {list(rewards.shape)}; "
            "mix each sequence's rewards into one first"
        )
    if group_size < 2:
        raise UserError(
            f"group_advantages: group_size is {group_size}, but a group needs 2 samples to compare; "
            "raise rollout.group_size"
        )
    if len(rewards) % group_size:
        raise UserError(
            f"group_advantages: {len(rewards)} rewards do not divide into groups of {group_size}; pass whole groups"
        )
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    bad = int((~rewards.isfinite()).sum())
    if bad:
        raise UserError(
            f"group_advantages: {bad} of {len(rewards)} rewards are NaN or infinite; mend the reward that returned them"
        )
    groups = rewards.view(-1, group_size)
    # Relative to the first sample, so that equal rewards centre to 0 and not to a rounding error divided by eps.
    relative = groups - groups[:, :1]
    centred = relative - relative.mean(dim=1, keepdim=True)
    return (centred / (relative.std(dim=1, keepdim=True) + eps)).flatten()
