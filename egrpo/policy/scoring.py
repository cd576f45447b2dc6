"""Teacher forcing: log probabilities and entropies of tokens that were drawn before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from egrpo.algorithm import logps_and_entropy
from egrpo.policy.backbone import Backbone
from egrpo.policy.layout import left_pack, positions_of, unconditional
from egrpo.policy.lockstep import ALONE, Lockstep
from egrpo.types import Rollout, Segment, TokenScores


def score_text(
    backbone: Backbone,
    segment: Segment,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    lockstep: Lockstep = ALONE,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Scores plans with the text head, at counted positions only.

    Returns:
        logps [N, T] float32 with gradient and entropy [N, T] float32 detached; both 0 where segment.mask is False.
        Without `entropy` that is [N, 0].
    """
    ids, mask = left_pack(segment.context_ids, segment.context_mask)
    ids = torch.cat([ids, segment.tokens[:, :-1]], dim=1)
    mask = torch.cat([mask, segment.mask[:, :-1]], dim=1)
    hidden = backbone.hidden(backbone.embed_text(ids), mask, positions_of(mask))
    return _head_scores(hidden, backbone.lm_head, segment, temperature, chunk_size, lockstep, entropy)


def score_image(
    backbone: Backbone,
    segment: Segment,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    padding: str = "exact",
    guidance: float = 1.0,
    pad: int = 0,
    lockstep: Lockstep = ALONE,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Scores image codes with the image head, in the positions they were drawn in.

    Args:
        guidance: Logits are u + guidance (c - u), c and u the conditional and unconditional ones; 1 = conditional.
        pad: Pad token id, which stands in for the prompt in unconditional rows.

    Returns:
        logps [N, T] float32 with gradient and entropy [N, T] float32 detached, or [N, 0] without `entropy`.
    """
    ids, mask = segment.context_ids, segment.context_mask
    if padding == "exact":
        ids, mask = left_pack(ids, mask)
    hidden = _image_hidden(backbone, ids, mask, segment, padding)
    if guidance == 1:
        return _head_scores(hidden, backbone.generation_head, segment, temperature, chunk_size, lockstep, entropy)
    bare = _image_hidden(backbone, *unconditional(ids, mask, pad, padding), segment, padding)

    head = GuidedHead(backbone.generation_head, guidance)
    return _head_scores(torch.cat([hidden, bare], dim=-1), head, segment, temperature, chunk_size, lockstep, entropy)


class GuidedHead(nn.Module):
    """Guided logits [m, V] of pairs of hidden states [m, 2 D], the conditional one first."""

    def __init__(self, head: nn.Module, guidance: float) -> None:
        super().__init__()
        self.head, self.guidance = head, guidance

    def forward(self, pair: Tensor) -> Tensor:
        conditional, free = (self.head(half).float() for half in pair.chunk(2, dim=-1))
        return free + self.guidance * (conditional - free)


def _image_hidden(backbone: Backbone, ids: Tensor, mask: Tensor, segment: Segment, padding: str) -> Tensor:
    """Hidden states [N, L + T - 1, D] of contexts [N, L] followed by the segment's codes."""
    codes = segment.tokens[:, :-1]
    embeds = torch.cat([backbone.embed_text(ids), backbone.embed_image(codes)], dim=1)
    mask = torch.cat([mask, torch.ones_like(codes, dtype=torch.bool)], dim=1)
    return backbone.hidden(embeds, mask, positions_of(mask, padding))


def score_rollout(
    backbone: Backbone,
    rollout: Rollout,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    padding: str = "exact",
    pad: int = 0,
    lockstep: Lockstep = ALONE,
    entropy: bool = True,
) -> TokenScores:
    """Scores of both segments along T, text first (no text columns without CoT).

    Args:
        backbone: The modules.
        rollout: N samples.
        temperature: Divides the logits.
        chunk_size: Positions whose logits are held at once.
        padding: The mode the image tokens were drawn in.
        pad: Pad token id, for a rollout with guidance.
        lockstep: With ranks that hold other parts of the weights.
        entropy: False = entropies are not computed, and their field is [N, 0].
    """
    shared: dict[str, Any] = {"temperature": temperature, "chunk_size": chunk_size, "lockstep": lockstep}
    shared["entropy"] = entropy
    parts = []
    if rollout.text is not None:
        parts.append(score_text(backbone, rollout.text, **shared))
    image = score_image(backbone, rollout.image, padding=padding, guidance=rollout.guidance, pad=pad, **shared)
    parts.append(image)
    logps, entropies = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
    return replace(rollout.sampled, logps=logps, entropy=entropies)


def _head_scores(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    segment: Segment,
    temperature: float,
    chunk_size: int,
    lockstep: Lockstep,
    entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Runs the head at counted positions: the hidden state before a token predicts it."""
    at = segment.mask
    hidden = hidden[:, hidden.shape[1] - at.shape[1] :]
    counted, targets = hidden[at], segment.tokens[at]
    # Chunks follow from how many tokens are counted, and ranks must run the head equally often: idle positions fill up.
    idle = lockstep.most(len(targets)) - len(targets)
    if idle:
        counted, targets = nn.functional.pad(counted, (0, 0, 0, idle)), nn.functional.pad(targets, (0, idle))
    settings: dict[str, Any] = {"temperature": temperature, "chunk_size": chunk_size, "entropy": entropy}
    logps, entropies = logps_and_entropy(counted, head, targets, **settings)
    nothing = logps.new_zeros(at.shape)
    real = len(logps) - idle
    told = nothing.masked_scatter(at, entropies[:real]) if entropy else nothing[:, :0]
    return nothing.masked_scatter(at, logps[:real]), told
