"""Several rewards become one: masked weighted sums, and scales that make rewards comparable."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_rewards(values: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weighted sum of the rewards that count for each sequence (T2I-R1 and EG-GRPO: weights 1, all count).

    Where some do not count, the others' weights are scaled up so that the sum of absolute weights stays the same. Such
    a sum is for reports; samples of a group are compared by `comparable_in_groups`.

    Args:
        values: [N, R]; what stands at uncounted places does not matter, NaN included.
        weights: [R], at least one not 0.
        mask: [N, R] bool, True = counted; None = all.

    Returns:
        [N], in the units of `values`; NaN for a sequence none of whose weighted rewards counts.
    """
    if mask is None:
        return values @ weights
    total = torch.where(mask, values, 0.0) @ weights
    scale = weights.abs().sum() / (mask.to(values.dtype) @ weights.abs())
    return torch.where(mask.all(dim=1), total, total * scale)


def comparable_in_groups(values: Tensor, weights: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """Weighted sums that may be compared within each group although some rewards are missing.

    The samples of a group differ by the sum of their rewards' deviations from the group's means over counted values, so
    a reward that is missing says nothing about its sample, neither for nor against it. A sample without any reward
    lies at the group's mean. Where all rewards count the result is `values @ weights`, to the last digit.

    Args:
        values: [N, R]; the `group_size` samples of a prompt are consecutive. Uncounted places may hold NaN.
        weights: [R].
        mask: [N, R] bool, True = counted.

    Returns:
        [N], in the units of `values`. A reward that counts nowhere in a group adds 0 there.
    """
    if bool(mask.all()):
        return values @ weights
    _, means, _ = _centred(values, mask, group_size)
    return torch.where(mask, values, means.repeat_interleave(group_size, dim=0)) @ weights


def in_whole_groups(mask: Tensor, columns: Tensor, group_size: int) -> Tensor:
    """The mask [N, R], in the chosen `columns` [R] bool False for a whole group where it is False for one of it."""
    groups = mask.view(-1, group_size, mask.shape[1])
    whole = groups.all(dim=1, keepdim=True).expand_as(groups)
    return torch.where(columns, whole, groups).reshape_as(mask)


def centred_in_groups(values: Tensor, mask: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Deviations of each reward from its group's mean over counted values, and their standard deviations.

    Args:
        values: [N, R]; the `group_size` samples of a prompt are consecutive.
        mask: [N, R] bool, True = counted.

    Returns:
        deviations [N, R], 0 at uncounted places, and unbiased standard deviations [N / G, R], 0 where a group has
        fewer than two counted values.
    """
    deviations, _, std = _centred(values, mask, group_size)
    return deviations, std


def zscores_in_groups(values: Tensor, mask: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """Each reward centred and scaled within its group: (r - mean) / (std + eps), so that weights compare.

    A reward that is equal in all of a group gives exact zeros there, and so does an uncounted value.

    Args:
        values: [N, R]. mask: [N, R] bool, True = counted.

    Returns:
        [N, R], without unit.
    """
    deviations, std = centred_in_groups(values, mask, group_size)
    return deviations / (std.repeat_interleave(group_size, dim=0) + eps)


def _centred(values: Tensor, mask: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Deviations [N, R], means [N / G, R] (0 where nothing counts) and standard deviations [N / G, R]."""
    counted = mask.view(-1, group_size, mask.shape[1])
    groups = torch.where(mask, values, 0.0).view_as(counted)
    number = counted.sum(dim=1)
    # Relative to the largest counted value, so that equal rewards centre to 0 and not to a rounding error.
    top = groups.masked_fill(~counted, -torch.inf).amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).min)
    relative = torch.where(counted, groups - top, 0.0)
    mean = relative.sum(dim=1) / number.clamp(min=1)
    deviations = torch.where(counted, relative - mean[:, None], 0.0)
    std = (deviations.square().sum(dim=1) / (number - 1).clamp(min=1)).sqrt()
    means = torch.where(number > 0, top[:, 0] + mean, 0.0)
    return deviations.view_as(values), means, torch.where(number > 1, std, 0.0)
