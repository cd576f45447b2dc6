"""Entropy thresholds of a segment, a pair a sequence, from ranks over its counted tokens.

`ranked[i, t]` True = the position takes part in the ranks. h[0..n-1] are a sequence's n ranked entropies, ascending.
Thresholds of a sequence with n = 0 are inf or nan; nothing compares as above or below them, save by the caller's mask.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor


def as_ratio(fraction: float) -> Fraction:
    """The decimal that was written: 0.2 becomes 1/5, so that shares of counts are exact on every device."""
    return Fraction(fraction).limit_denominator(1_000_000)


def floor_share(share: Fraction, count: Tensor) -> Tensor:
    """floor(share * count), in integers. count [N] int64 -> [N] int64."""
    return count * share.numerator // share.denominator


def order_thresholds(
    entropy: Tensor, ranked: Tensor, *, high_fraction: float, low_fraction: float, at_least_one: bool
) -> tuple[Tensor, Tensor]:
    """High and low threshold as order statistics.

    Image rule (`at_least_one` False): high = h[floor((1 - high_fraction) n)], low = h[floor(low_fraction n)].
    Text rule (True): high = h[n - max(1, floor(high_fraction n))], low = h[max(1, floor(low_fraction n))]; a
    low_fraction of 0 keeps its band empty. Positions beyond the last are the last.

    Source: EG-GRPO (arXiv 2604.02355), the published main trainer.

    Args:
        entropy: [N, T]. ranked: [N, T] bool.

    Returns:
        high [N] and low [N], in the units of entropy.
    """
    h, n = _sorted(entropy, ranked)
    high_share, low_share = as_ratio(high_fraction), as_ratio(low_fraction)
    if at_least_one:
        high_at = n - floor_share(high_share, n).clamp(min=1)
        low_at = floor_share(low_share, n).clamp(min=1 if low_share else 0)
    else:
        high_at = floor_share(1 - high_share, n)
        low_at = floor_share(low_share, n)
    return _at(h, n, high_at), _at(h, n, low_at)


def quantile_thresholds(
    entropy: Tensor, ranked: Tensor, *, high_fraction: float, low_fraction: float, at_least_one: bool = False
) -> tuple[Tensor, Tensor]:
    """High and low threshold as linearly interpolated quantiles at 1 - high_fraction and low_fraction.

    Source: EG-GRPO (arXiv 2604.02355), the published "compute efficient" trainer. Both segments follow one rule, so
    `at_least_one` changes nothing. Quantiles are taken in float32 whatever the entropy's type, as published: a float64
    token at a whole rank falls to the side that this rounding puts it on; up to float32 it lies in neither band.

    Args:
        entropy: [N, T]. ranked: [N, T] bool.

    Returns:
        high [N] and low [N], in the units of entropy.
    """
    h, n = _sorted(entropy.float(), ranked)
    return _quantile(h, n, 1 - as_ratio(high_fraction)), _quantile(h, n, as_ratio(low_fraction))


def top_threshold(entropy: Tensor, ranked: Tensor, fraction: float) -> Tensor:
    """The entropy of the max(1, floor(fraction n))-th highest ranked token. [N, T], [N, T] bool -> [N]."""
    h, n = _sorted(entropy, ranked)
    return _at(h, n, n - floor_share(as_ratio(fraction), n).clamp(min=1))


def _sorted(entropy: Tensor, ranked: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending entropies [N, T], unranked positions as inf at the end, and the ranked positions' number [N]."""
    return torch.where(ranked, entropy, torch.inf).sort(dim=1).values, ranked.sum(dim=1)


def _at(h: Tensor, n: Tensor, position: Tensor) -> Tensor:
    """h[i, position[i]], positions pulled into 0..n-1. [N, T], [N], [N] -> [N]."""
    if h.shape[1] == 0:
        return h.new_full((h.shape[0],), torch.inf)
    return h.gather(1, torch.minimum(position, n - 1).clamp(min=0).unsqueeze(1)).squeeze(1)


def _quantile(h: Tensor, n: Tensor, q: Fraction) -> Tensor:
    # Integers up to the last step: at a whole rank the quantile is that token's entropy to the bit.
    steps = (n - 1).clamp(min=0) * q.numerator
    below = steps // q.denominator
    weight = (steps % q.denominator).to(h.dtype) / q.denominator
    left, right = _at(h, n, below), _at(h, n, below + 1)
    return left + weight * (right - left)
