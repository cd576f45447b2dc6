"""Log-probabilities and entropies of drawn tokens, without holding the logits of a whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def logps_and_entropy(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Scores drawn tokens in one pass over the vocabulary head, `chunk_size` positions at a time.

    Where gradients are on, each chunk's logits are dropped after use and computed again in the backward pass.

    Source: token entropy as in EG-GRPO (arXiv 2604.02355), divided by log V so that vocabularies compare.

    Args:
        hidden: [M, D], hidden states that predict the targets; M may be 0.
        head: [m, D] -> [m, V] logits. Called twice a chunk where gradients are on.
        targets: [M] int64, drawn tokens.
        temperature: divides the logits before both results.
        chunk_size: most positions whose logits exist at one time.

    Returns:
        logps [M] in nats, with gradient to hidden and to the head's parameters;
        entropy [M], detached, divided by log V, 0..1. Both float32 (float64 logits stay float64).

    Raises:
        ValueError: hidden not [M, D], targets not [M], temperature not above 0, chunk_size below 1.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"logps_and_entropy: hidden must be [M, D] and targets [M], got {list(hidden.shape)} and "
            f"{list(targets.shape)}; flatten sequences and positions first"
        )
    if not temperature > 0:
        raise ValueError(f"logps_and_entropy: temperature is {temperature}; set one above 0")
    if chunk_size < 1:
        raise ValueError(f"logps_and_entropy: chunk_size is {chunk_size}; set 1 or more")

    def score(hidden_chunk: Tensor, targets_chunk: Tensor) -> tuple[Tensor, Tensor]:
        return _score_logits(head(hidden_chunk), targets_chunk, temperature)

    # split, not slices: its backward joins the chunks' gradients once instead of summing full-size ones.
    pairs = zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True)
    if torch.is_grad_enabled():
        scored = [checkpoint(score, h, t, use_reentrant=False) for h, t in pairs]
    else:
        scored = [score(h, t) for h, t in pairs]
    return torch.cat([logps for logps, _ in scored]), torch.cat([entropy for _, entropy in scored])


def _score_logits(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[m, V], [m] -> logps [m] and detached entropy [m] / log V."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    log_probs = logits.log_softmax(dim=-1)
    logps = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    # After the last operation that saves for backward: the recomputation stops there and skips the entropy.
    with torch.no_grad():
        nats = torch.special.entr(log_probs.exp()).sum(dim=-1)  # entr(0) = 0, so -inf logits do no harm
        entropy = nats / max(math.log(logits.shape[-1]), torch.finfo(nats.dtype).tiny)
    return logps, entropy
