"""Several rewards become one: masked weighted sums, and scales that make rewards comparable."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_rewards(values: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weighted sum of the rewards that count for each sequence (T2I-R1 and EG-GRPO: weights 1, all count).

    Where some do not count, the others' weights are scaled up so that the sum of absolute weights stays the same.

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


def centred_in_groups(values: Tensor, mask: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Deviations of each reward from its group's mean over counted values, and their standard deviations.

    Args:
        values: [N, R]; the `group_size` samples of a prompt are consecutive.
        mask: [N, R] bool, True = counted.

    Returns:
        deviations [N, R], 0 at uncounted places, and unbiased standard deviations [N / G, R], 0 where a group has
        fewer than two counted values.
    """
    counted = mask.view(-1, group_size, mask.shape[1])
    groups = torch.where(mask, values, 0.0).view_as(counted)
    number = counted.sum(dim=1)
    # Relative to the largest counted value, so that equal rewards centre to 0 and not to a rounding error.
    top = groups.masked_fill(~counted, -torch.inf).amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).min)
    relative = torch.where(counted, groups - top, 0.0)
    mean = relative.sum(dim=1) / number.clamp(min=1)
    deviations = torch.where(counted, relative - mean[:, None], 0.0)
    std = (deviations.square().sum(dim=1) / (number - 1).clamp(min=1)).sqrt()
    return deviations.view_as(values), torch.where(number > 1, std, 0.0)


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
