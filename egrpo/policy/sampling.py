"""The two sampling loops: plans from the text head, image codes under classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egrpo.policy.backbone import Backbone, CachedDecoder, evaluating
from egrpo.policy.drawing import draw
from egrpo.policy.layout import check_padding, left_pack, positions_of, unconditional
from egrpo.policy.lockstep import ALONE, Lockstep


@dataclass(frozen=True)
class Drawn:
    """Tokens drawn by one loop and what was recorded of them."""

    tokens: Tensor  # [N, T] int64
    mask: Tensor  # [N, T] bool, up to and including the first end-of-sequence token
    logps: Tensor  # [N, T] float32, at the sampling temperature, 0 where mask is False
    entropy: Tensor  # [N, T] float32, divided by log V, 0 where mask is False
    truncated: Tensor  # [N] bool, True = no end-of-sequence token within the limit


@torch.no_grad()
def draw_image_tokens(
    backbone: Backbone,
    context_ids: Tensor,
    context_mask: Tensor,
    uniforms: Tensor | None,
    *,
    num_tokens: int,
    pad: int,
    cfg_weight: float,
    temperature: float = 1.0,
    padding: str = "exact",
    record_guided: bool = False,
) -> Drawn:
    """Draws image codes from u + cfg_weight (c - u), c and u the conditional and unconditional logits.

    Args:
        backbone: The modules.
        context_ids: [N, L] text ids, begin-of-image last.
        context_mask: [N, L] bool, False = padding wherever it stands.
        uniforms: [N, num_tokens] float64 in [0, 1); None = greedy.
        num_tokens: Codes of an image, T.
        pad: Pad token id, whose embedding stands in for the prompt in unconditional rows.
        cfg_weight: 1 = no guidance (no unconditional rows are run).
        temperature: Divides the logits.
        padding: "exact" or "published", see `sample_image_tokens`.
        record_guided: Records log probabilities and entropies of the guided distribution that is drawn from; False =
            of the conditional one.
    """
    _check(temperature, context_mask)
    check_padding(padding)
    if padding == "exact":
        context_ids, context_mask = left_pack(context_ids, context_mask)
    count = len(context_ids)
    guided = cfg_weight != 1
    if guided:
        bare_ids, bare_mask = unconditional(context_ids, context_mask, pad, padding)
        context_ids, context_mask = torch.cat([context_ids, bare_ids]), torch.cat([context_mask, bare_mask])
    decoder = CachedDecoder(backbone, context_ids, context_mask, positions_of(context_mask, padding), num_tokens)
    steps: list[tuple[Tensor, ...]] = []
    for t in range(num_tokens):
        if t:
            embeds = backbone.embed_image(steps[-1][0])
            decoder.step(embeds.repeat(2, 1) if guided else embeds)
        logits = backbone.generation_head(decoder.hidden).float()
        conditional, bare = logits[:count], logits[count:]
        mixed = bare + cfg_weight * (conditional - bare) if guided else conditional
        recorded = mixed if record_guided else conditional
        steps.append(draw(mixed, recorded, None if uniforms is None else uniforms[:, t], temperature))
    tokens, logps, entropy = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
    _check_finite(logps)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    return Drawn(tokens, everywhere, logps, entropy, everywhere.new_zeros(count))


@torch.no_grad()
def draw_text_tokens(
    backbone: Backbone,
    context_ids: Tensor,
    context_mask: Tensor,
    uniforms: Tensor | None,
    *,
    max_tokens: int,
    eos: int | None,
    temperature: float = 1.0,
    lockstep: Lockstep = ALONE,
) -> Drawn:
    """Draws text until every row has met end-of-sequence or `max_tokens` are drawn.

    Tokens after a row's first end-of-sequence token are that token again, and are not counted. Positions count real
    tokens, so that a row does not depend on its batch.

    Args:
        backbone: The modules.
        context_ids: [N, L] text ids.
        context_mask: [N, L] bool, False = padding wherever it stands.
        uniforms: [N, max_tokens] float64 in [0, 1); None = greedy.
        max_tokens: Most tokens of a row.
        eos: End-of-sequence token id, None = rows never end.
        temperature: Divides the logits.
        lockstep: With ranks that hold other parts of the weights: none stops before all can.

    Returns:
        Drawn, T = longest row, of all ranks in lockstep.
    """
    _check(temperature, context_mask)
    context_ids, context_mask = left_pack(context_ids, context_mask)
    decoder = CachedDecoder(backbone, context_ids, context_mask, positions_of(context_mask), max_tokens)
    ended = context_mask.new_zeros(len(context_mask))
    steps: list[tuple[Tensor, ...]] = []
    for t in range(max_tokens):
        if t:
            decoder.step(backbone.embed_text(steps[-1][0]))
        logits = backbone.lm_head(decoder.hidden).float()
        token, logp, entropy = draw(logits, logits, None if uniforms is None else uniforms[:, t], temperature)
        if eos is None:
            steps.append((token, ~ended, logp, entropy))
            continue
        steps.append((token.masked_fill(ended, eos), ~ended, logp.masked_fill(ended, 0), entropy.masked_fill(ended, 0)))
        ended = ended | (token == eos)
        if lockstep.all_done(bool(ended.all())):
            break
    tokens, mask, logps, entropies = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
    _check_finite(logps)
    return Drawn(tokens, mask, logps, entropies, ~ended)


def sample_image_tokens(
    model: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    cfg_weight: float,
    temperature: float = 1.0,
    greedy: bool = False,
    padding: str = "exact",
    generator: torch.Generator | None = None,
    num_image_tokens: int | None = None,
) -> Tensor:
    """Samples image codes from a native `JanusForConditionalGeneration`, without top-k.

    Args:
        model: The model; its own config tells the pad token and the number of image tokens.
        prompt_ids: [N, L] text ids, begin-of-image last.
        prompt_mask: [N, L], False = padding wherever it stands.
        cfg_weight: Guidance, logits = u + cfg_weight (c - u).
        temperature: Divides the logits.
        greedy: Takes the most likely code instead of a random one.
        padding: "exact": a prompt's result does not depend on its batch. "published": as T2I-R1 and EG-GRPO do,
            rows as given, positions count the padding holes, the unconditional mask is all ones.
        generator: Source of the random numbers, [N, T] drawn at once; None = torch's own.
        num_image_tokens: T, None = the grid of the model's VQ decoder.

    Returns:
        [N, T] int64.

    Raises:
        ValueError: The config has no pad token, or an argument is out of range.
    """
    count = num_image_tokens or grid_size(model.config)
    uniforms = None
    if not greedy:
        source = generator.device if generator is not None else prompt_ids.device
        shape = (len(prompt_ids), count)
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(prompt_ids.device)
    with evaluating(model):
        drawn = draw_image_tokens(
            Backbone.of(model),
            prompt_ids,
            prompt_mask.bool(),
            uniforms,
            num_tokens=count,
            pad=pad_token(model),
            cfg_weight=cfg_weight,
            temperature=temperature,
            padding=padding,
        )
    return drawn.tokens


def grid_size(config: Any) -> int:
    """Image tokens of one image: the cells of the VQ decoder's grid, by a native JanusConfig."""
    return int(config.vq_config.num_patches) ** 2


def pad_token(model: Any) -> int:
    """Pad token id by the text config, the generation config, or the model's config, in this order.

    Raises:
        ValueError: None of them has one.
    """
    for config in (model.config.text_config, model.generation_config, model.config):
        pad = getattr(config, "pad_token_id", None)
        if pad is not None:
            return int(pad)
    raise ValueError("the model's config has no pad token: set model.config.text_config.pad_token_id")


def _check(temperature: float, context_mask: Tensor) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}; for the most likely tokens use greedy")
    if not bool(context_mask[:, -1].all()):
        raise ValueError("the last context token of every row must be a real one, not padding")


def _check_finite(logps: Tensor) -> None:
    if not bool(torch.isfinite(logps).all()):
        raise FloatingPointError("the model's logits hold NaN or infinity: nothing can be sampled from them")
