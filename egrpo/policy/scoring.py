"""Teacher forcing: log probabilities and entropies of tokens that were drawn before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from egrpo.algorithm import logps_and_entropy
from egrpo.base.errors import UserError
from egrpo.policy.backbone import Backbone
from egrpo.policy.layout import left_pack, positions_of, right_padded, unconditional, without_filler
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
    ids = torch.cat([segment.context_ids, segment.tokens], dim=1)
    order = right_padded(torch.cat([segment.context_mask, segment.mask], dim=1))
    hidden = backbone.hidden(backbone.embed_text(ids.gather(1, order[:, :-1])))  # the last token predicts nothing
    counted = hidden.flatten(0, 1)[_predicting(segment, hidden.shape[1])]
    return _head_scores(counted, backbone.lm_head, segment, temperature, chunk_size, lockstep, entropy)


def score_text_columns(
    backbone: Backbone,
    segment: Segment,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    lockstep: Lockstep = ALONE,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Scores plans at every column, after their end, too, as EG-GRPO's released code does before it ranks entropies.

    Columns after a plan's end hold end-of-sequence tokens, at positions that go on counting. Their queries see prompt
    and plan and no padding, not even themselves. There are as many columns as the longest plan of these rows has
    tokens, so how many a row has depends on its neighbours, though no column's values do.

    Returns:
        logps [N, T] float32 and entropy [N, T] float32 detached; after the longest plan they are 0 and NaN. Without
        `entropy` that is [N, 0].

    Raises:
        UserError: the attention is one that leaves padded columns out.
    """
    kind = str(getattr(backbone.language_model.config, "_attn_implementation", ""))
    if "flash" in kind:
        raise UserError(
            f"model.attn_implementation={kind} computes nothing at padding, whose entropies are ranked "
            "(entropy_policy.rank_padding=true): set model.attn_implementation=sdpa"
        )
    width = int(segment.mask.sum(dim=1).max())
    context_ids, context_mask = without_filler(segment.context_ids, segment.context_mask)
    ids = torch.cat([context_ids, segment.tokens[:, :width]], dim=1)[:, :-1]
    mask = torch.cat([context_mask, segment.mask[:, :width]], dim=1)[:, :-1]
    hidden = backbone.hidden(backbone.embed_text(ids), mask, positions_of(mask, "published"))
    every = replace(segment, tokens=segment.tokens[:, :width], mask=torch.ones_like(segment.mask[:, :width]))
    predicting = hidden[:, context_ids.shape[1] - 1 :].flatten(0, 1)
    logps, entropies = _head_scores(predicting, backbone.lm_head, every, temperature, chunk_size, lockstep, entropy)
    missing = (0, segment.tokens.shape[1] - width)
    entropies = nn.functional.pad(entropies, missing, value=torch.nan) if entropy else entropies
    return nn.functional.pad(logps, missing), entropies


def _predicting(segment: Segment, width: int) -> Tensor:
    """Where, in rows of `width` padded on the right, stands the token before each counted one; indices of N x width."""
    rows = torch.arange(len(segment.mask), device=segment.mask.device).unsqueeze(-1)
    at = segment.context_mask.sum(dim=1, keepdim=True) + segment.mask.cumsum(dim=1) - 2
    return (rows * width + at)[segment.mask]


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
    contexts = [(segment.context_ids, segment.context_mask)]
    if padding == "published":
        contexts = [without_filler(*contexts[0])]
    head: nn.Module = backbone.generation_head
    if guidance != 1:
        if padding == "exact":
            contexts = [left_pack(*contexts[0])]
        contexts.append(unconditional(*contexts[0], pad, padding))
        head = GuidedHead(head, guidance)
    # Both kinds in one pass: each weight's gradient comes once.
    ids, mask = (torch.cat(parts) for parts in zip(*contexts, strict=True))
    codes = segment.tokens[:, :-1].repeat(len(contexts), 1)
    hidden = _image_hidden(backbone, ids, mask, codes, padding)
    counted = torch.cat([part[segment.mask] for part in hidden.chunk(len(contexts))], dim=-1)
    return _head_scores(counted, head, segment, temperature, chunk_size, lockstep, entropy)


class GuidedHead(nn.Module):
    """Guided logits [m, V] of pairs of hidden states [m, 2 D], the conditional one first."""

    def __init__(self, head: nn.Module, guidance: float) -> None:
        super().__init__()
        self.head, self.guidance = head, guidance

    def forward(self, pair: Tensor) -> Tensor:
        conditional, free = (self.head(half).float() for half in pair.chunk(2, dim=-1))
        return free + self.guidance * (conditional - free)


def _image_hidden(backbone: Backbone, ids: Tensor, mask: Tensor, codes: Tensor, padding: str) -> Tensor:
    """Hidden states [N, T, D] that predict T codes, of contexts [N, L] followed by the first T - 1 codes."""
    embeds = torch.cat([backbone.embed_text(ids), backbone.embed_image(codes)], dim=1)
    whole = torch.cat([mask, torch.ones_like(codes, dtype=torch.bool)], dim=1)
    if padding == "published":
        return backbone.hidden(embeds, whole, positions_of(whole, padding))[:, mask.shape[1] - 1 :]
    order = right_padded(whole)
    hidden = backbone.hidden(_columns(embeds, order))
    first = mask.sum(dim=1, keepdim=True) - 1
    return _columns(hidden, first + torch.arange(codes.shape[1] + 1, device=codes.device))


def _columns(values: Tensor, at: Tensor) -> Tensor:
    """Columns `at` [N, S] of [N, L, D]; gather would keep the values until the backward pass."""
    rows = torch.arange(len(at), device=at.device).unsqueeze(-1) * values.shape[1]
    return values.flatten(0, 1).index_select(0, (rows + at).flatten()).unflatten(0, at.shape)


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
    segment: str | None = None,
    at_padding: bool = False,
) -> TokenScores:
    """Scores of both segments along T, text first (no text columns without CoT), or of one.

    Args:
        backbone: The modules.
        rollout: N samples.
        temperature: Divides the logits.
        chunk_size: Positions whose logits are held at once.
        padding: The mode the image tokens were drawn in.
        pad: Pad token id, for a rollout with guidance.
        lockstep: With ranks that hold other parts of the weights.
        entropy: False = entropies are not computed, and their field is [N, 0].
        segment: "text" or "image" = that one alone.
        at_padding: Plans are scored after their end, too, see `score_text_columns`.

    Raises:
        UserError: the rollout has no such segment.
    """
    shared: dict[str, Any] = {"temperature": temperature, "chunk_size": chunk_size, "lockstep": lockstep}
    shared["entropy"] = entropy
    wanted = rollout.segments if segment is None else [segment]
    if not set(wanted) <= set(rollout.segments):
        raise UserError(
            f"segment={segment}: this rollout has {', '.join(rollout.segments)}; choose one, or None for all"
        )
    own: list[Segment] = [getattr(rollout, name) for name in wanted]
    parts = []
    if "text" in wanted:
        score_plans = score_text_columns if at_padding else score_text
        parts.append(score_plans(backbone, own[0], **shared))
    if "image" in wanted:
        parts.append(score_image(backbone, own[-1], padding=padding, guidance=rollout.guidance, pad=pad, **shared))
    logps, entropies = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
    return TokenScores(
        logps=logps,
        entropy=entropies,
        mask=torch.cat([part.mask for part in own], dim=1),
        is_image=torch.cat([torch.full_like(part.mask, part is rollout.image) for part in own], dim=1),
    )


def _head_scores(
    counted: Tensor,
    head: nn.Module,
    segment: Segment,
    temperature: float,
    chunk_size: int,
    lockstep: Lockstep,
    entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Runs the head at the hidden states [M, D] before counted tokens; scores [N, T], 0 elsewhere."""
    at = segment.mask
    targets = segment.tokens[at]
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
