"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159) without the tensors that it sums over.

transformers samples each level with `grid_sample` and stacks the samples, [N, heads, width, queries, levels * points],
before it weights and sums them: gigabytes at the detector's real size. Here each query's sample is a weighted sum of
rows of the value, four rows a point, which torch's embedding bag adds up as it reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoMultiscaleDeformableAttention


class DeformableSampling(nn.Module):
    """As transformers' MultiScaleDeformableAttention, in its place; no parameters."""

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        sampled = deformable_sums(value, value_spatial_shapes_list, sampling_locations, attention_weights)
        return sampled.to(value.dtype)


def use_deformable_sums(model: nn.Module) -> None:
    """Replaces the sampling of all deformable attentions of a GroundingDINO, in place."""
    for module in model.modules():
        if isinstance(module, GroundingDinoMultiscaleDeformableAttention):
            cast(Any, module).attn = DeformableSampling()


def deformable_sums(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples; outside a level its value is 0.

    Args:
        value: [N, S, heads, width], the levels' positions one after another, row by row.
        shapes: (height, width) of each of L levels; their areas sum to S.
        locations: [N, Q, heads, L, points, 2], (x, y) in 0..1 of their level.
        weights: [N, Q, heads, L, points].

    Returns:
        [N, Q, heads * width] float32.
    """
    (batch, positions, heads, width), queries = value.shape, locations.shape[1]
    high, wide, start = _levels(tuple(shapes), value.device)
    at = locations.float() * torch.stack([wide, high], -1) - 0.5  # pixel centres lie at whole numbers
    low = at.floor()
    after = at - low
    x, y = low.int().unbind(-1)
    right, below = after.unbind(-1)
    first = start + positions * torch.arange(batch, dtype=torch.int32, device=value.device).view(-1, 1, 1, 1, 1)
    head = torch.arange(heads, dtype=torch.int32, device=value.device).view(-1, 1, 1)
    rows, shares = [], []
    for row, along in ((y, 1 - below), (y + 1, below)):
        share = along.where((row >= 0) & (row < high), 0) * weights.float()
        line = first + row.clamp(min=0).minimum(high - 1) * wide
        for column, across in ((x, 1 - right), (x + 1, right)):
            shares.append(across.where((column >= 0) & (column < wide), 0) * share)
            rows.append((line + column.clamp(min=0).minimum(wide - 1)) * heads + head)
    bags = (batch * queries * heads, -1)
    summed = F.embedding_bag(
        torch.stack(rows, -1).view(bags),
        value.float().reshape(-1, width),
        mode="sum",
        per_sample_weights=torch.stack(shares, -1).view(bags),
    )
    return summed.view(batch, queries, heads * width)


@lru_cache(maxsize=16)  # so that no layer waits for a copy to the device
def _levels(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Height, width and first position of each level, [L, 1] int32."""
    starts = accumulate((high * wide for high, wide in shapes[:-1]), initial=0)
    rows = [[high, wide, start] for (high, wide), start in zip(shapes, starts, strict=True)]
    high, wide, start = torch.tensor(rows, dtype=torch.int32, device=device)[:, :, None].unbind(1)
    return high, wide, start
