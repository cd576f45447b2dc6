"""Gradients of log-probabilities through a vocabulary head, a chunk of positions at a time.

With g the gradient that arrives at a token's log-probability, that of its logits is g (onehot - p) / temperature. A
position's log-probability depends on its own hidden state alone, so for a frozen head everything but the factor g is
known in the forward pass. The gradient of a trained head's weights sums over positions and has to wait for g.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# On a CPU a softmax is taken over so many bytes at once: they stay in the cache, and fresh memory costs more than sums.
SOFTMAX_BYTES = 8 * 2**20
# Most bytes of a chunk's logits on a CPU, whatever the vocabulary; an accelerator has room and wants large products.
LOGIT_BYTES = 64 * 2**20
LOWEST = -1e4  # a probability of exp(-1e4) is 0, and 0 x -inf would be nan


def is_plain(head: Any) -> bool:
    """Whether running `head` does nothing but compute: no hooks, and no weights that lie elsewhere.

    Hooks gather the weights that ZeRO or FSDP divide, and they want to see every call; autocast changes types between
    the forward and the backward pass.
    """
    if not isinstance(head, nn.Module):
        return False
    hooked = any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in head.modules()
    )
    return not hooked and all(type(p) is nn.Parameter and not _elsewhere(p) for p in head.parameters())


def _elsewhere(parameter: nn.Parameter) -> bool:
    """Divided by ZeRO, trained or not gathered."""
    return hasattr(parameter, "ds_id") and (parameter.requires_grad or not parameter.numel())


def is_frozen(head: nn.Module) -> bool:
    return not any(p.requires_grad for p in head.parameters())


def linear_rows(head: nn.Linear, count: int, chunk_size: int) -> int:
    """Positions of a chunk: even parts of `count`, of at most `chunk_size`, and on a CPU of `LOGIT_BYTES` of logits."""
    if head.weight.device.type == "cpu":
        chunk_size = min(chunk_size, max(1, LOGIT_BYTES // (head.weight.element_size() * head.out_features)))
    return even_rows(count, chunk_size)


def even_rows(count: int, most: int) -> int:
    """Size of the parts, as equal as can be, that `count` rows are cut into; at least 1, at most `most`."""
    return -(-count // (-(-count // most) or 1)) or 1


def score_chunk(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    entropy: bool,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores [m, V] logits, without autograd.

    Args:
        logits: [m, V].
        targets: [m] int64.
        temperature: Divides the logits.
        entropy: Whether entropies are wanted.
        gradient: [m, V] that is filled with the gradient of the log-probabilities to the logits; may be `logits`.

    Returns:
        logps [m] and entropy [m] / log V (empty if not wanted), float32 or the wider type of the logits.
    """
    rows = len(logits) or 1
    if logits.device.type == "cpu":
        rows = max(1, SOFTMAX_BYTES // (4 * logits.shape[1]))
    wide = torch.promote_types(logits.dtype, torch.float32)
    logps, entropies = logits.new_empty(len(logits), dtype=wide), logits.new_empty(len(logits) * entropy, dtype=wide)
    for first in range(0, len(logits), rows):
        at = slice(first, first + rows)
        block = logits[at].to(wide) / temperature if temperature != 1.0 else logits[at]
        log_probs = block.log_softmax(dim=-1, dtype=wide)
        del block
        own = targets[at].unsqueeze(-1)
        logps[at] = log_probs.gather(-1, own).squeeze(-1)
        if entropy:
            entropies[at] = entropy_of(log_probs.clamp_(min=LOWEST))
        if gradient is not None:
            change = log_probs.exp_().neg_()  # no longer log-probabilities
            change.scatter_add_(-1, own, change.new_ones(own.shape))
            gradient[at] = change if temperature == 1.0 else change.div_(temperature)
    return logps, entropies


def entropy_of(log_probs: Tensor) -> Tensor:
    """[m, V], not below `LOWEST` -> [m], divided by log V."""
    nats = log_probs.exp().mul_(log_probs).sum(dim=-1).neg_()
    return nats / max(math.log(log_probs.shape[-1]), torch.finfo(nats.dtype).tiny)


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    rows: int,
    entropy: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores through a linear head, without autograd, `rows` positions at a time.

    `kept` [rows, V], if given, holds the logits of one chunk after another, and is left with the last one's gradient.
    """
    buffer = _buffer(hidden, weight, rows) if kept is None else kept
    scored = []
    for first in range(0, len(hidden) or 1, rows):
        at = slice(first, first + rows)
        logits = _logits(hidden[at], weight, bias, buffer)
        last = first + rows >= len(hidden)
        gradient = logits if last and kept is not None else None
        scored.append(score_chunk(logits, targets[at], temperature, entropy, gradient))
    return torch.cat([logps for logps, _ in scored]), torch.cat([found for _, found in scored])


def _buffer(hidden: Tensor, weight: Tensor, rows: int) -> Tensor:
    return hidden.new_empty(min(rows, len(hidden)), len(weight))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """[m, D] -> [m, V], in `buffer`."""
    out = buffer[: len(hidden)]
    return torch.mm(hidden, weight.T, out=out) if bias is None else torch.addmm(bias, hidden, weight.T, out=out)


class LinearScores(torch.autograd.Function):
    """Scores through a trained linear head. One buffer holds a chunk's logits and then, in place, their gradient.

    The last chunk's gradient stays in it; the backward pass begins there and computes the other chunks again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *settings: Any) -> Any:
        ctx.temperature, ctx.rows, entropy = settings
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.buffer = _buffer(hidden, weight, ctx.rows)
        scores = linear_scores(hidden, weight, bias, targets, ctx.temperature, ctx.rows, entropy, ctx.buffer)
        ctx.mark_non_differentiable(scores[1])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        to_hidden, to_weight, to_bias = (
            torch.zeros_like(tensor) if wanted else None
            for tensor, wanted in zip((hidden, weight, bias), ctx.needs_input_grad)
        )
        factor = factor.unsqueeze(-1)
        buffer, ctx.buffer = ctx.buffer, None
        fresh = buffer is None  # a second backward pass of the same graph
        if fresh:
            buffer = _buffer(hidden, weight, ctx.rows)
        for first in reversed(range(0, len(hidden), ctx.rows)):
            at = slice(first, first + ctx.rows)
            gradient = buffer[: len(hidden[at])]
            if fresh:
                _logits(hidden[at], weight, bias, buffer)
                score_chunk(gradient, targets[at], ctx.temperature, False, gradient)
            fresh = True
            # The factor goes to the sides of width D: cheaper, and the buffer stays as it is.
            if to_hidden is not None:
                to_hidden[at] = (gradient @ weight).mul_(factor[at])
            scaled = (hidden[at] * factor[at]).to(hidden.dtype)
            if to_weight is not None:
                to_weight.addmm_(gradient.T, scaled)
            if to_bias is not None:
                to_bias += (gradient * factor[at]).sum(dim=0)
        return to_hidden, to_weight, to_bias, None, None, None, None


class FrozenScores(torch.autograd.Function):
    """Scores through a frozen head: the gradient of each log-probability to its hidden state is taken at once and kept,
    [M, D], so that the backward pass only multiplies it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, *settings: Any) -> Any:
        temperature, rows, entropy = settings
        kept = torch.empty_like(hidden)
        scored = []
        buffer = None
        for first in range(0, len(hidden) or 1, rows):
            at = slice(first, first + rows)
            with torch.enable_grad():
                chunk = hidden[at].detach().requires_grad_()
                logits = head(chunk)
            buffer = torch.empty_like(logits) if buffer is None else buffer
            gradient = buffer[: len(chunk)]
            # Not in place: the head's last operation may have kept its output.
            scored.append(score_chunk(logits.detach(), targets[at], temperature, entropy, gradient))
            (kept[at],) = torch.autograd.grad(logits, chunk, gradient)
            del logits
        ctx.save_for_backward(kept)
        logps, entropies = torch.cat([one for one, _ in scored]), torch.cat([one for _, one in scored])
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return (kept * factor.unsqueeze(-1)).to(kept.dtype), None, None, None, None, None
