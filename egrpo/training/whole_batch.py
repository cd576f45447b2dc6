"""The whole step's batch on every rank: its small parts, without pixels and contexts.

Whatever compares or counts over the batch (group statistics, normalisation of rewards, entropy policies, denominators,
metrics) sees what one process would see, so none of it knows of ranks. A rank then takes its own rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from egrpo import distributed
from egrpo.types import RewardTable, Rollout, Segment


def whole_rollout(rollout: Rollout, entropy_of_padding: float = 0.0) -> Rollout:
    """All ranks' rollouts in rank order, shorter plans padded, no context ids, no pixels; alone: the same object.

    Args:
        rollout: This rank's.
        entropy_of_padding: What is recorded as entropy in the columns that shorter plans get.
    """
    if distributed.world_size() == 1:
        return rollout
    device = rollout.image.tokens.device
    light = replace(
        rollout,
        truncated=rollout.truncated.cpu(),
        text=None if rollout.text is None else _light(rollout.text),
        image=_light(rollout.image),
        pixels=rollout.pixels[:, :0].cpu(),
    )
    parts = distributed.gather(light)
    texts = [part.text for part in parts if part.text is not None]
    return replace(
        rollout,
        prompts=[prompt for part in parts for prompt in part.prompts],
        plans=[plan for part in parts for plan in part.plans],
        truncated=torch.cat([part.truncated for part in parts]).to(device),
        text=_joined(texts, device, entropy_of_padding) if texts else None,
        image=_joined([part.image for part in parts], device),
        pixels=torch.cat([part.pixels for part in parts]),
    )


def whole_table(table: RewardTable) -> RewardTable:
    """All ranks' reward tables in rank order; alone: the same object."""
    if distributed.world_size() == 1:
        return table
    parts = distributed.gather(table)
    values, mask, applies = (torch.cat([getattr(p, name) for p in parts]) for name in ("values", "mask", "applies"))
    return replace(table, values=values, mask=mask, applies=applies)


def own_rows(values: Tensor, count: int) -> Tensor:
    """This rank's `count` rows of a tensor over the whole batch."""
    start = distributed.rank() * count
    return values[start : start + count]


def own_tokens(values: Tensor, rollout: Rollout) -> Tensor:
    """This rank's part [N, T] of a tensor over the whole batch, whose text columns reach to the longest plan of all."""
    rows = own_rows(values, len(rollout))
    image = rollout.image.tokens.shape[1]
    text = 0 if rollout.text is None else rollout.text.tokens.shape[1]
    if rows.shape[1] == text + image:
        return rows
    return torch.cat([rows[:, :text], rows[:, rows.shape[1] - image :]], dim=1)


def _light(segment: Segment) -> Segment:
    own = (segment.tokens[:, :0], segment.mask, segment.logps, segment.entropy)
    return Segment(segment.context_ids[:, :0].cpu(), segment.context_mask[:, :0].cpu(), *(x.cpu() for x in own))


def _joined(parts: list[Segment], device: torch.device, entropy_of_padding: float = 0.0) -> Segment:
    longest = max(part.mask.shape[1] for part in parts)

    def joined(name: str) -> Tensor:
        rows = [getattr(part, name) for part in parts]
        if name in ("mask", "logps", "entropy"):  # padding is not counted
            value = entropy_of_padding if name == "entropy" else 0
            rows = [pad(row, (0, longest - row.shape[1]), value=value) for row in rows]
        return torch.cat(rows).to(device)

    return Segment(*(joined(name) for name in ("context_ids", "context_mask", "tokens", "mask", "logps", "entropy")))
