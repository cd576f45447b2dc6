"""From logits to a token: inverse-CDF sampling, and what is recorded of the draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egrpo.base.errors import UserError

# Beyond these, logits become infinite or 0 in float32, and what is drawn says nothing about the model.
TEMPERATURES = (1e-4, 1e4)
MAX_GUIDANCE = 1000.0


@dataclass(frozen=True)
class Drawing:
    """How logits become a token.

    Args:
        temperature: Divides the logits, those that are drawn from and those that are recorded.
        greedy: Takes the most likely token.
        top_k: Draws from the k most likely tokens only; None = all.
        top_p: Draws from the fewest tokens that hold this much probability; None = all.
        cfg_weight: Guidance: draws from u + cfg_weight (c - u), c and u the conditional and unconditional logits;
            1 = none.
        record_guided: Records log probabilities and entropies of the guided distribution; False = the conditional one.

    Both cuts change what is drawn, never what is recorded: log probabilities and entropies are those of the whole
    distribution, as scoring finds them.

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = 1.0
    greedy: bool = False
    top_k: int | None = None
    top_p: float | None = None
    cfg_weight: float = 1.0
    record_guided: bool = False

    def __post_init__(self) -> None:
        low, high = TEMPERATURES
        if not low <= self.temperature <= high:
            raise UserError(
                f"temperature must be above 0, from {low:g} to {high:g}, not {self.temperature}; for the most likely "
                "tokens use greedy"
            )
        if not 0 <= self.cfg_weight <= MAX_GUIDANCE:
            raise UserError(f"cfg_weight={self.cfg_weight}: give a number from 0 to {MAX_GUIDANCE:g}; 1 = no guidance")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"rollout.top_k={self.top_k}: give at least 1, or null for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"rollout.top_p={self.top_p}: give a share above 0 and up to 1, or null for all tokens")

    @property
    def guided(self) -> bool:
        """Whether unconditional rows are needed."""
        return self.cfg_weight != 1


def draw(logits: Tensor, uniforms: Tensor | None, how: Drawing) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a token a row and records it.

    Args:
        logits: [N, V]; under guidance [2 N, V], the unconditional ones last.
        uniforms: [N] in [0, 1), or None for the most likely token.
        how: Temperature, guidance, cuts.

    Returns:
        tokens [N] int64; their log probabilities [N] float32; entropy [N] float32, divided by log V.
    """
    logits = logits.float()
    conditional, free = logits.chunk(2) if how.guided else (logits, logits)
    mixed = free + how.cfg_weight * (conditional - free) if how.guided else logits
    allowed = cut(mixed / how.temperature if how.top_p is not None else mixed, how.top_k, how.top_p)
    if uniforms is None:
        tokens = mixed.argmax(dim=-1)
    else:
        open_to = mixed if allowed is None else mixed.masked_fill(~allowed, -math.inf)
        tokens = inverse_cdf(open_to, uniforms, temperature=how.temperature)
    recorded = mixed if how.record_guided else conditional
    log_probs = torch.log_softmax(recorded if how.temperature == 1 else recorded / how.temperature, dim=-1)
    logps = log_probs.gather(-1, tokens[:, None])[:, 0]
    # A product of exp(-inf) = 0 and -inf would be NaN.
    entropy = -(log_probs.exp() * log_probs.clamp_(min=-1e4)).sum(dim=-1)
    return tokens, logps, entropy / math.log(log_probs.shape[-1])


def cut(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor | None:
    """Tokens that may be drawn, [N, V] bool; None = all. Equally likely tokens at an edge are all allowed.

    Args:
        logits: [N, V], at the sampling temperature.
        top_k: Most likely tokens to keep.
        top_p: Probability to keep, of those that `top_k` leaves.
    """
    allowed = None
    if top_k is not None and top_k < logits.shape[-1]:
        allowed = logits >= logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(~allowed, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, _ = logits.double().softmax(dim=-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of all that are more likely
        least = ordered.masked_fill(before >= top_p, 1.0).amin(dim=-1, keepdim=True)
        enough = logits.double().softmax(dim=-1) >= least
        allowed = enough if allowed is None else allowed & enough
    return allowed


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
