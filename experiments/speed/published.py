"""The published training step of T2I-R1 and EG-GRPO, written from its description: what it computes, and how.

Plain on purpose, since it is what egrpo is measured against: eager loops, a cache that is copied at every token, no
shared prefixes, full logits, thresholds sorted on the CPU. Sources: arXiv 2505.00703, arXiv 2604.02355, docs/paper.md.

Where the description leaves a choice, the cheaper one is taken: only the last position's logits while sampling, no
gradient through the entropy, logits in the model's own type. What is measured is then a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Drawn:
    """Tokens after their context, named as in `egrpo.types.Segment`, so that either is scored."""

    context_ids: Tensor  # [N, L] int64
    context_mask: Tensor  # [N, L] bool, False = padding
    tokens: Tensor  # [N, T] int64
    mask: Tensor  # [N, T] bool, up to and including the first end-of-sequence token


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids [N, L] int64 and mask [N, L] bool."""
    longest = max(len(row) for row in rows)
    fill = [[pad] * (longest - len(row)) for row in rows]
    ids = [f + list(row) if left else list(row) + f for row, f in zip(rows, fill, strict=True)]
    real = [[0] * len(f) + [1] * len(row) if left else [1] * len(row) + [0] * len(f) for row, f in zip(rows, fill)]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device, dtype=torch.bool)


def draw(logits: Tensor, uniforms: Tensor | None, temperature: float) -> Tensor:
    """A token a row of logits [N, V]; uniforms [N] float64, None = the most likely token.

    The published code calls torch.multinomial. Given numbers make both sides draw the same tokens, and cost less:
    multinomial makes a random number for every word of the vocabulary.
    """
    if uniforms is None:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def write_plans(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor | None,
    *,
    max_tokens: int,
    eos: int,
    temperature: float = 1.0,
) -> Drawn:
    """Plans [N, T] after contexts [N, L] padded on the left; all rows run until the last one ends."""
    language = model.model.language_model
    embed = language.get_input_embeddings()
    cache, feed, seen = DynamicCache(), embed(ids), mask.long()
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    tokens, counted = [], []
    for t in range(max_tokens):
        positions = (seen.cumsum(dim=-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        out = language(
            inputs_embeds=feed, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits = model.lm_head(out.last_hidden_state[:, -1])
        token = draw(logits, None if uniforms is None else uniforms[:, t], temperature).masked_fill(ended, eos)
        tokens.append(token)
        counted.append(~ended)
        ended = ended | (token == eos)
        if bool(ended.all()):
            break
        feed = embed(token)[:, None]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
    return Drawn(ids, mask, torch.stack(tokens, dim=1), torch.stack(counted, dim=1))


@torch.no_grad()
def draw_images(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor | None,
    *,
    num_tokens: int,
    pad: int,
    cfg_weight: float,
    temperature: float = 1.0,
) -> Drawn:
    """Image codes [N, T] under guidance; contexts [N, L] padded on the right before begin-of-image, which stands last.

    Rows alternate between conditional and unconditional ones. An unconditional row keeps the first and the last
    embedding, and its mask is all ones. Positions count the holes of the padding.
    """
    language = model.model.language_model
    both, seen = ids.repeat_interleave(2, dim=0), mask.long().repeat_interleave(2, dim=0)
    both[1::2, 1:-1] = pad
    seen[1::2] = 1
    cache, feed = DynamicCache(), language.get_input_embeddings()(both)
    tokens = []
    for t in range(num_tokens):
        out = language(inputs_embeds=feed, attention_mask=seen, past_key_values=cache, use_cache=True)
        logits = model.model.generation_head(out.last_hidden_state[:, -1])
        conditional, bare = logits[0::2], logits[1::2]
        mixed = bare + cfg_weight * (conditional - bare)
        token = draw(mixed, None if uniforms is None else uniforms[:, t], temperature)
        tokens.append(token)
        twice = torch.stack([token, token], dim=1).flatten()
        feed = model.prepare_embeddings_for_image_generation(twice)[:, None]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
    codes = torch.stack(tokens, dim=1)
    return Drawn(ids, mask, codes, torch.ones_like(codes, dtype=torch.bool))


@torch.no_grad()
def decode(model: Any, codes: Tensor) -> Tensor:
    """Image codes [N, T] -> pixels [N, H, W, 3] uint8, all images at once."""
    pixels = model.decode_image_tokens(codes)
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)


def token_scores(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities with gradient and entropies divided by log V, both [N, T], from logits [N, T, V], row by row.

    Every row takes a softmax of its own for the log-probability and another for the entropy.
    """
    logps, entropies = [], []
    for row, target in zip(logits, targets, strict=True):
        scaled = row / temperature if temperature != 1 else row
        logps.append(scaled.log_softmax(dim=-1).gather(1, target[:, None])[:, 0])
        with torch.no_grad():
            probs = F.softmax(scaled, dim=-1)
            entropies.append(-(probs * torch.log(probs + 1e-12)).sum(dim=-1) / math.log(row.shape[-1]))
    return torch.stack(logps), torch.stack(entropies)


def score_text(model: Any, text: Any, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores [N, T] of plans: logits of the whole sequence, prompt included, cut to the plan afterwards."""
    language = model.model.language_model
    ids = torch.cat([text.context_ids, text.tokens], dim=1)
    seen = torch.cat([text.context_mask, text.mask], dim=1).long()
    hidden = language(
        inputs_embeds=language.get_input_embeddings()(ids), attention_mask=seen, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden)[:, :-1]
    start = text.context_ids.shape[1] - 1
    logps, entropy = token_scores(logits, ids[:, 1:], temperature)
    return logps[:, start:], entropy[:, start:]


def score_image(model: Any, image: Any, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores [N, T] of image codes by the conditional logits."""
    language = model.model.language_model
    prompt = language.get_input_embeddings()(image.context_ids)
    embeds = torch.cat([prompt, model.prepare_embeddings_for_image_generation(image.tokens)], dim=1)
    seen = torch.cat([image.context_mask, image.mask], dim=1).long()
    hidden = language(inputs_embeds=embeds, attention_mask=seen, use_cache=False).last_hidden_state
    start = image.context_ids.shape[1] - 1
    logits = model.model.generation_head(hidden[:, start:-1])
    return token_scores(logits, image.tokens, temperature)


def token_advantages(advantages: Tensor, entropy: Tensor, mask: Tensor, text_columns: int) -> Tensor:
    """EG-GRPO's token advantages [N, T], sequence by sequence and segment by segment, sorted on the CPU.

    Bonus min(.3 |A|, .3 H) above the median, 0 below the lowest fifth. Padding takes no part in the ranks: the sides
    record different entropies there.
    """
    entropy, mask, advantages = entropy.detach().float().cpu(), mask.cpu(), advantages.float().cpu()
    shaped = torch.zeros_like(entropy)
    for i, advantage in enumerate(advantages.tolist()):
        for columns, at_least_one in ((slice(0, text_columns), True), (slice(text_columns, None), False)):
            counted = mask[i, columns]
            values = entropy[i, columns][counted]
            if not len(values):
                continue
            ranked, n = values.sort().values, len(values)
            if at_least_one:
                high, low = ranked[n - max(1, n // 2)], ranked[min(max(1, n // 5), n - 1)]
            else:
                high, low = ranked[min(n // 2, n - 1)], ranked[n // 5]
            bonus = torch.where(values > high, (0.3 * values).clamp(max=0.3 * abs(advantage)), 0.0)
            shaped[i, columns][counted] = torch.where(values < low, 0.0, advantage + bonus)
    return shaped


def loss(logps: Tensor, ref_logps: Tensor, advantages: Tensor, mask: Tensor, beta: float, tokens: Tensor) -> Tensor:
    """Mean over `tokens` counted tokens of -(ratio A - beta k3); all [N, T]."""
    ratio = torch.exp(logps - logps.detach())
    kl = torch.exp(ref_logps - logps) - (ref_logps - logps) - 1
    return (-(ratio * advantages - beta * kl) * mask).sum() / tokens
