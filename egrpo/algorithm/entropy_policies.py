"""Entropy policies: from one advantage a sequence to one a token.

Every policy is f(advantages [N], entropy [N, T], mask [N, T], is_image [N, T], **settings)
-> (token_advantages [N, T], metrics). `mask` True = counted, `is_image` True = image token, False = text token.
Token advantages are detached, float32 (float64 stays float64) and 0 where masked. The KL term of excluded tokens is
the loss's business.

Metrics are 0-d tensors, those of a segment left out when it has no counted token:
    share_bonus, share_plain, share_excluded    shares of the counted tokens; also with suffix _text, _image
    threshold_high_text, threshold_low_text     mean threshold over the sequences that have such tokens; also _image
    bonus_mass                                  mean bonus a counted token, in units of advantage
    bonus_lambda                                budget_balanced only: advantage per unit of entropy
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from egrpo.algorithm.thresholds import as_ratio, order_thresholds, quantile_thresholds, top_threshold
from egrpo.base.errors import UserError

Metrics = dict[str, Tensor]
SEGMENTS = ("text", "image")
THRESHOLDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "order": order_thresholds,
    "quantile": quantile_thresholds,
}


@dataclass(frozen=True)
class _Bands:
    """Which counted tokens are shaped, and the thresholds [N] by metric name."""

    high: Tensor  # [N, T] bool, gets the bonus
    low: Tensor  # [N, T] bool, loses the advantage
    thresholds: dict[str, Tensor] = field(default_factory=dict)


def uniform(advantages: Tensor, entropy: Tensor, mask: Tensor, is_image: Tensor) -> tuple[Tensor, Metrics]:
    """Plain GRPO: every counted token carries its sequence's advantage. Entropy is ignored.

    Source: T2I-R1 GRPO; DeepSeekMath (arXiv 2402.03300), outcome supervision.

    Raises:
        UserError: shapes that do not fit.
    """
    plain, entropy, mask, is_image = _prepare(advantages, entropy, mask, is_image)
    nowhere = torch.zeros_like(mask)
    bands = _Bands(nowhere, nowhere)
    return _shape(plain, torch.zeros_like(entropy), bands, mask, is_image)


def entropy_guided(
    advantages: Tensor,
    entropy: Tensor,
    mask: Tensor,
    is_image: Tensor,
    *,
    high_fraction: float = 0.5,
    low_fraction: float = 0.2,
    bonus_scale: float = 0.3,
    bonus_cap: float = 0.3,
    segments: Sequence[str] = SEGMENTS,
    threshold: str = "order",
    rank_padding: bool = False,
) -> tuple[Tensor, Metrics]:
    """EG-GRPO as published: a bonus for uncertain tokens, no advantage for certain ones.

    A token strictly above its sequence's high threshold gets A + min(bonus_cap |A|, bonus_scale H); one strictly below
    the low threshold gets 0; the others get A. Ranks are per sequence and segment.

    Source: EG-GRPO (arXiv 2604.02355), the published trainers.

    Args:
        high_fraction, low_fraction: shares of the tokens in the high and the low band; together at most 1.
        bonus_scale: weight of the entropy H (divided by log V) in the bonus.
        bonus_cap: most that the bonus may be, in units of the sequence's |A|.
        segments: the segments to shape; tokens of the others carry the plain advantage.
        threshold: "order" (order statistics; text and image round differently) or "quantile" (interpolated).
        rank_padding: True = masked text positions take part in the text ranks with the entropy given there, as in the
            published code, save those where it is NaN (columns that the sequence's micro-step does not have); False =
            what the paper says. Masked positions get advantage 0 either way.

    Raises:
        UserError: shapes that do not fit, fractions outside 0..1 or summing above 1, unknown or no segment, unknown
            threshold, negative bonus_scale or bonus_cap.
    """
    _check_nonnegative(bonus_scale=bonus_scale, bonus_cap=bonus_cap)
    plain, entropy, mask, is_image = _prepare(advantages, entropy, mask, is_image)
    bands = _bands(entropy, mask, is_image, high_fraction, low_fraction, segments, threshold, rank_padding)
    bonus = torch.minimum(bonus_cap * plain.abs(), bonus_scale * entropy)
    return _shape(plain, bonus, bands, mask, is_image)


def budget_balanced(
    advantages: Tensor,
    entropy: Tensor,
    mask: Tensor,
    is_image: Tensor,
    *,
    kappa: float = 1.0,
    high_fraction: float = 0.5,
    low_fraction: float = 0.2,
    segments: Sequence[str] = SEGMENTS,
    threshold: str = "order",
) -> tuple[Tensor, Metrics]:
    """EG-GRPO in the paper's form: the advantage taken from certain tokens is the budget of the entropy bonus.

    A_t = [not low] A + [high] lambda* H, with one lambda* for all sequences passed:
    lambda* = kappa sum_i |A_i| |low_i| / T_i  /  sum_i (1 / T_i) sum_{t in high_i} H_t, T_i the counted tokens of
    sequence i; 0 where nothing was taken or no entropy is there to weigh. Pass the whole batch for one lambda* a batch.

    Source: EG-GRPO (arXiv 2604.02355), the paper's budget-balanced bonus.

    Args:
        kappa: share of the taken advantage that is given back, 1 = all.
        high_fraction, low_fraction, segments, threshold: as in `entropy_guided`.

    Raises:
        UserError: as in `entropy_guided`; negative kappa.
    """
    _check_nonnegative(kappa=kappa)
    plain, entropy, mask, is_image = _prepare(advantages, entropy, mask, is_image)
    bands = _bands(entropy, mask, is_image, high_fraction, low_fraction, segments, threshold, rank_padding=False)
    tokens = mask.sum(dim=1, keepdim=True).clamp(min=1)
    taken = (torch.where(bands.low, plain.abs(), 0.0) / tokens).sum()
    weighed = (torch.where(bands.high, entropy, 0.0) / tokens).sum()
    scale = torch.where(weighed > 0, kappa * taken / torch.where(weighed > 0, weighed, 1.0), 0.0)
    token_advantages, metrics = _shape(plain, scale * entropy, bands, mask, is_image)
    return token_advantages, {**metrics, "bonus_lambda": scale}


def top_entropy(
    advantages: Tensor, entropy: Tensor, mask: Tensor, is_image: Tensor, *, fraction: float = 0.2
) -> tuple[Tensor, Metrics]:
    """Only the most uncertain tokens carry the advantage: max(1, floor(fraction n)) of a segment's n counted tokens.

    Tokens tied with the last of them carry it too, so that a token's place in the sequence never decides.

    Source: forking tokens, "Beyond the 80/20 Rule" (arXiv 2506.01939), per sequence and segment instead of per batch.

    Args:
        fraction: share of the tokens that carry the advantage.

    Raises:
        UserError: shapes that do not fit, fraction outside 0..1.
    """
    _check_fractions(fraction=fraction)
    plain, entropy, mask, is_image = _prepare(advantages, entropy, mask, is_image)
    low, thresholds = torch.zeros_like(mask), {}
    for name in SEGMENTS:
        counted = mask & _of_segment(name, is_image)
        least = top_threshold(entropy, counted, fraction)
        low = low | (counted & (entropy < least.unsqueeze(1)))
        thresholds[f"threshold_high_{name}"] = least
    bands = _Bands(torch.zeros_like(mask), low, thresholds)
    return _shape(plain, torch.zeros_like(entropy), bands, mask, is_image)


def ranks_padding(entropy_policy: Callable[..., object]) -> bool:
    """Whether an entropy policy reads the entropies at the padding of plans, which cost a forward pass of their own.

    That is so where it is a partial that sets `rank_padding` and shapes text, as `entropy_guided` reads both.
    """
    settings = getattr(entropy_policy, "keywords", {})
    return bool(settings.get("rank_padding", False)) and "text" in settings.get("segments", SEGMENTS)


def _prepare(
    advantages: Tensor, entropy: Tensor, mask: Tensor, is_image: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checks shapes; returns the advantage at every token [N, T] and the entropy, both at least float32, and masks."""
    for name, value in (("mask", mask), ("is_image", is_image)):
        if entropy.dim() != 2 or value.shape != entropy.shape:
            raise UserError(f"{name} is {list(value.shape)}, entropy {list(entropy.shape)}; pass both as [N, T]")
    if advantages.shape != entropy.shape[:1]:
        raise UserError(
            f"advantages have shape {list(advantages.shape)}, entropy {list(entropy.shape)}; pass one "
            "advantage a sequence"
        )
    dtype = torch.promote_types(torch.promote_types(advantages.dtype, entropy.dtype), torch.float32)
    plain = advantages.detach().to(dtype).unsqueeze(1).expand(entropy.shape)
    return plain, entropy.detach().to(dtype), mask.bool(), is_image.bool()


def _of_segment(name: str, is_image: Tensor) -> Tensor:
    return is_image if name == "image" else ~is_image


def _bands(
    entropy: Tensor,
    mask: Tensor,
    is_image: Tensor,
    high_fraction: float,
    low_fraction: float,
    segments: Sequence[str],
    threshold: str,
    rank_padding: bool,
) -> _Bands:
    """The high and the low band of each sequence in the segments asked for."""
    _check_bands(high_fraction, low_fraction, segments, threshold)
    high, low = torch.zeros_like(mask), torch.zeros_like(mask)
    thresholds: dict[str, Tensor] = {}
    for name in segments:
        inside = _of_segment(name, is_image)
        counted = mask & inside
        ranked = counted | (inside & ~entropy.isnan()) if rank_padding and name == "text" else counted
        above, below = THRESHOLDS[threshold](
            entropy,
            ranked,
            high_fraction=high_fraction,
            low_fraction=low_fraction,
            at_least_one=name == "text",
        )
        high = high | (counted & (entropy > above.unsqueeze(1)))
        low = low | (counted & (entropy < below.unsqueeze(1)))
        thresholds |= {f"threshold_high_{name}": above, f"threshold_low_{name}": below}
    return _Bands(high, low, thresholds)


def _shape(plain: Tensor, bonus: Tensor, bands: _Bands, mask: Tensor, is_image: Tensor) -> tuple[Tensor, Metrics]:
    """Token advantages (A + [high] bonus) [not low], 0 where masked, and what the trainer may log about them."""
    bonus = torch.where(bands.high, bonus, 0.0)
    token_advantages = torch.where(mask & ~bands.low, plain + bonus, 0.0)
    metrics = {"bonus_mass": bonus.sum() / mask.sum().clamp(min=1), **_shares(bands, mask)}
    inside = {name: mask & _of_segment(name, is_image) for name in SEGMENTS}
    # The one read by the host: which keys there are depends on which segments have tokens.
    present = torch.stack([inside[name].any() for name in SEGMENTS]).tolist()
    for name, here in zip(SEGMENTS, present, strict=True):
        if here:
            metrics |= {f"{key}_{name}": value for key, value in _shares(bands, inside[name]).items()}
            rows = inside[name].any(dim=1)
            for key in (f"threshold_high_{name}", f"threshold_low_{name}"):
                if key in bands.thresholds:
                    metrics[key] = torch.where(rows, bands.thresholds[key], 0.0).sum() / rows.sum()
    return token_advantages, metrics


def _shares(bands: _Bands, counted: Tensor) -> Metrics:
    tokens = counted.sum().clamp(min=1)
    return {
        "share_bonus": (counted & bands.high).sum() / tokens,
        "share_plain": (counted & ~bands.high & ~bands.low).sum() / tokens,
        "share_excluded": (counted & bands.low).sum() / tokens,
    }


def _check_bands(high_fraction: float, low_fraction: float, segments: Sequence[str], threshold: str) -> None:
    _check_fractions(high_fraction=high_fraction, low_fraction=low_fraction)
    if as_ratio(high_fraction) + as_ratio(low_fraction) > 1:
        raise UserError(f"high_fraction {high_fraction} + low_fraction {low_fraction} exceeds 1; lower one of them")
    named = [segments] if isinstance(segments, str) else list(segments)
    if isinstance(segments, str) or not named or any(name not in SEGMENTS for name in named):
        raise UserError(f"segments is {segments!r}; list one or both of {list(SEGMENTS)}")
    if threshold not in THRESHOLDS:
        raise UserError(f"threshold is {threshold!r}; choose one of {sorted(THRESHOLDS)}")


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; set a share of the tokens within 0..1")


def _check_nonnegative(**settings: float) -> None:
    for name, value in settings.items():
        if not value >= 0:
            raise UserError(f"{name} is {value}; set 0 or more")
