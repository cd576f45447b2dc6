"""Log-probabilities and entropies of drawn tokens, without holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from egrpo.algorithm import heads
from egrpo.base.errors import UserError


def logps_and_entropy(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 1024,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Scores drawn tokens in one pass over the vocabulary head, `chunk_size` positions at a time.

    Where gradients are on, no more than one chunk's logits stay: a trained head's are computed again in the backward
    pass, and a frozen head's gradient to `hidden` is taken in the forward pass, up to the factor that arrives later.

    Source: token entropy as in EG-GRPO (arXiv 2604.02355), divided by log V so that vocabularies compare.

    Args:
        hidden: [M, D], hidden states that predict the targets; M may be 0.
        head: [m, D] -> [m, V] logits, each row of its own hidden state alone. Called once a chunk, and once more in the
            backward pass unless it is a module without trainable parameters or hooks. The weights of an `nn.Linear`
            without hooks are used directly.
        targets: [M] int64, drawn tokens.
        temperature: divides the logits before both results.
        chunk_size: most positions whose logits exist at one time; on a CPU a linear head takes fewer where they would
            exceed 64 MiB.
        entropy: False = entropies are not computed.

    Returns:
        logps [M] in nats, with gradient to hidden and to the head's parameters;
        entropy [M], detached, divided by log V, 0..1; [0] if not asked for. Both float32 (float64 logits stay float64).

    Raises:
        UserError: hidden not [M, D], targets not [M], temperature not above 0, chunk_size below 1.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise UserError(
            f"logps_and_entropy: hidden must be [M, D] and targets [M], got {list(hidden.shape)} and "
            f"{list(targets.shape)}; flatten sequences and positions first"
        )
    if not temperature > 0:
        raise UserError(f"logps_and_entropy: temperature is {temperature}; set one above 0")
    if chunk_size < 1:
        raise UserError(f"logps_and_entropy: chunk_size is {chunk_size}; set 1 or more")
    graph = torch.is_grad_enabled()
    if heads.is_plain(head) and not torch.is_autocast_enabled(hidden.device.type):
        if type(head) is nn.Linear and not (graph and heads.is_frozen(head)):
            scores = heads.LinearScores.apply if graph else heads.linear_scores
            rows = heads.linear_rows(head, len(hidden), chunk_size)
            return scores(hidden, head.weight, head.bias, targets, temperature, rows, entropy)
        if graph and isinstance(head, nn.Module) and heads.is_frozen(head) and hidden.requires_grad:
            return heads.FrozenScores.apply(hidden, head, targets, temperature, chunk_size, entropy)
    return _in_chunks(hidden, head, targets, temperature, chunk_size, entropy)


def _in_chunks(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Through any head; autograd computes each chunk again in the backward pass."""

    def score(hidden_chunk: Tensor, targets_chunk: Tensor) -> tuple[Tensor, Tensor]:
        return _score_logits(head(hidden_chunk), targets_chunk, temperature, entropy)

    # split, not slices: its backward joins the chunks' gradients once instead of summing full-size ones.
    pairs = zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True)
    if torch.is_grad_enabled():
        scored = [checkpoint(score, h, t, use_reentrant=False) for h, t in pairs]
    else:
        scored = [heads.score_chunk(head(h), t, temperature, entropy) for h, t in pairs]
    return torch.cat([logps for logps, _ in scored]), torch.cat([found for _, found in scored])


def _score_logits(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """[m, V], [m] -> logps [m] and detached entropy [m] / log V, or [0] if not asked for."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    log_probs = logits.log_softmax(dim=-1)
    logps = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    # After the last operation that saves for backward: the recomputation stops there and skips the entropy.
    with torch.no_grad():
        found = heads.entropy_of(log_probs.clamp(min=heads.LOWEST)) if entropy else logps.new_empty(0)
    return logps, found
