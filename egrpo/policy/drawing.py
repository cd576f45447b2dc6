"""From logits to a token: inverse-CDF sampling, and what is recorded of the draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_cdf(logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Draws a token a row: the first index whose cumulative probability exceeds the row's uniform number.

    Computed in float64. A token of probability zero (logit -inf) is never drawn, not even by rounding.

    Args:
        logits: [N, V], any float type.
        uniforms: [N] in [0, 1).
        temperature: Divides the logits.

    Returns:
        [N] int64.
    """
    probs = torch.softmax(logits.double() / temperature, dim=-1)
    possible = probs > 0
    cdf = torch.where(possible, probs.cumsum(dim=-1), 0.0)
    total = cdf.amax(dim=-1, keepdim=True)
    # u * total may round up to total, which no entry exceeds.
    target = torch.minimum(uniforms.double()[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # argmax gives the first hit; parallel sums need not be monotone to the last bit, so no binary search.
    return ((cdf > target) & possible).to(torch.uint8).argmax(dim=-1)


def draw(
    guided: Tensor, recorded: Tensor, uniforms: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a token a row and records it.

    Args:
        guided: [N, V] float32 logits to draw from.
        recorded: [N, V] float32 logits to record, conditional or guided.
        uniforms: [N] in [0, 1), or None for the most likely token.
        temperature: Divides both.

    Returns:
        tokens [N] int64; their log probabilities [N] float32; entropy [N] float32, divided by log V.
    """
    tokens = guided.argmax(dim=-1) if uniforms is None else inverse_cdf(guided, uniforms, temperature=temperature)
    log_probs = torch.log_softmax(recorded / temperature, dim=-1)
    logps = log_probs.gather(-1, tokens[:, None])[:, 0]
    # A product with exp(-inf) = 0 would be NaN.
    entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
    return tokens, logps, entropy / math.log(log_probs.shape[-1])
