"""How a rollout is cut into what is scored at once."""

from __future__ import annotations

import torch
from torch import Tensor

from egrpo.types import Rollout


def micro_batches(rollout: Rollout, size: int | None, by_length: bool) -> list[Tensor]:
    """Indices of rows, at most `size` at once (None = all); every row is in one.

    Args:
        rollout: N samples.
        size: Rows of a micro-batch.
        by_length: Rows of like length go together, so that little padding is run, the longest first, so that a run
            that lacks memory ends soon. False = in their order.
    """
    size = size or len(rollout)
    if not by_length or size >= len(rollout):
        order = torch.arange(len(rollout), device=rollout.image.mask.device)
    else:
        counted = rollout.image.context_mask.sum(dim=1)  # a plan is part of an image's context
        if rollout.text is not None:
            counted = counted + rollout.text.context_mask.sum(dim=1) + rollout.text.mask.sum(dim=1)
        order = counted.argsort(descending=True, stable=True)
    return list(order.split(size))


def columns_of(rollout: Rollout) -> dict[str, slice]:
    """Columns of [N, T] of each segment, in order."""
    text = 0 if rollout.text is None else rollout.text.tokens.shape[1]
    place = {"text": slice(0, text), "image": slice(text, None)}
    return {name: place[name] for name in rollout.segments}
