"""Chunks of drawn tokens become one segment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from egrpo.policy.sampling import Drawn
from egrpo.types import Segment


def chunks(count: int, size: int | None) -> list[slice]:
    """Slices of at most `size` rows; None = all in one."""
    size = size or count
    return [slice(start, start + size) for start in range(0, count, size)]


def widened(drawn: Drawn, length: int, eos: int | None) -> Drawn:
    """Rows of `length` tokens: what is added is end-of-sequence and not counted."""
    missing = length - drawn.tokens.shape[1]
    if not missing:
        return drawn

    def pad(values: Tensor, value: float) -> Tensor:
        return nn.functional.pad(values, (0, missing), value=value)

    return Drawn(
        pad(drawn.tokens, eos or 0),
        pad(drawn.mask, False),
        pad(drawn.logps, 0.0),
        pad(drawn.entropy, 0.0),
        drawn.truncated,
    )


def segment_of(ids: Tensor, mask: Tensor, drawn: list[Drawn]) -> Segment:
    """Chunks of equal width as one segment after its context, ids and mask [N, L]."""
    parts = [torch.cat([getattr(part, name) for part in drawn]) for name in ("tokens", "mask", "logps", "entropy")]
    return Segment(ids, mask, *parts)
