"""The two sampling loops: plans from the text head, image codes under classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egrpo.base.errors import NotFiniteError, UserError
from egrpo.policy.backbone import Backbone, evaluating
from egrpo.policy.capture import Steps
from egrpo.policy.drawing import Drawing
from egrpo.policy.layout import check_padding, left_pack, positions_of, unconditional
from egrpo.policy.lockstep import ALONE, Lockstep
from egrpo.policy.loop import Loop
from egrpo.policy.packed import packed_linears


@dataclass(frozen=True)
class Drawn:
    """Tokens drawn by one loop and what was recorded of them."""

    tokens: Tensor  # [N, T] int64
    mask: Tensor  # [N, T] bool, up to and including the first end-of-sequence token
    logps: Tensor  # [N, T] float32, at the sampling temperature, 0 where mask is False
    entropy: Tensor  # [N, T] float32, divided by log V, 0 where mask is False
    truncated: Tensor  # [N] bool, True = no end-of-sequence token within the limit


@torch.inference_mode(False)
@torch.no_grad()
def draw_image_tokens(
    backbone: Backbone,
    context_ids: Tensor,
    context_mask: Tensor,
    uniforms: Tensor | None,
    *,
    num_tokens: int,
    pad: int,
    how: Drawing,
    padding: str = "exact",
    filler: Tensor | None = None,
    steps: Steps | None = None,
) -> Drawn:
    """Draws image codes.

    Args:
        backbone: The modules.
        context_ids: [N, L] text ids, begin-of-image last.
        context_mask: [N, L] bool, False = padding wherever it stands.
        uniforms: [N, num_tokens] float64 in [0, 1); None where `how.greedy`.
        num_tokens: Codes of an image, T.
        pad: Pad token id, whose embedding stands in for the prompt in unconditional rows.
        how: Temperature, guidance, cuts.
        padding: "exact" or "published", see `sample_image_tokens`.
        filler: [N], in published padding the leading columns that are no part of a row; None = none.
        steps: How tokens are fed; None = anew for this call.
    """
    check_padding(padding)
    _check(context_mask)
    if padding == "exact":
        context_ids, context_mask = left_pack(context_ids, context_mask)
    if how.guided:
        bare_ids, bare_mask = unconditional(context_ids, context_mask, pad, padding, filler)
        context_ids, context_mask = torch.cat([context_ids, bare_ids]), torch.cat([context_mask, bare_mask])
        filler = None if filler is None else filler.repeat(2)
    context = (context_ids, context_mask, positions_of(context_mask, padding, filler))
    steps = steps or Steps()
    with packed_linears([backbone.language_model, backbone.generation_head], len(context_ids), num_tokens):
        loop = steps.loop("image", backbone, context, uniforms, num_tokens, how)
        loop.draw()
        steps.run(loop, num_tokens - 1)
    return _drawn(loop, num_tokens)


@torch.inference_mode(False)
@torch.no_grad()
def draw_text_tokens(
    backbone: Backbone,
    context_ids: Tensor,
    context_mask: Tensor,
    uniforms: Tensor | None,
    *,
    max_tokens: int,
    eos: int | None,
    how: Drawing,
    lockstep: Lockstep = ALONE,
    steps: Steps | None = None,
) -> Drawn:
    """Draws text until every row has met end-of-sequence or `max_tokens` are drawn.

    Tokens after a row's first end-of-sequence token are that token again, and are not counted. Positions count real
    tokens, so that a row does not depend on its batch.

    Args:
        backbone: The modules.
        context_ids: [N, L] text ids.
        context_mask: [N, L] bool, False = padding wherever it stands.
        uniforms: [N, max_tokens] float64 in [0, 1); None where `how.greedy`.
        max_tokens: Most tokens of a row.
        eos: End-of-sequence token id, None = rows never end.
        how: Temperature and cuts.
        lockstep: With ranks that hold other parts of the weights: none stops before all can.
        steps: How tokens are fed; None = anew for this call.

    Returns:
        Drawn, T = longest row.
    """
    _check(context_mask)
    context_ids, context_mask = left_pack(context_ids, context_mask)
    context = (context_ids, context_mask, positions_of(context_mask))
    steps = steps or Steps()
    with packed_linears([backbone.language_model, backbone.lm_head], len(context_ids), max_tokens):
        loop = steps.loop("text", backbone, context, uniforms, max_tokens, how, eos)
        loop.draw()
        done = 1
        while done < max_tokens and not lockstep.all_done(loop.all_ended()):
            if lockstep is ALONE:
                loop.compact()
            turns = min(steps.unobserved(loop), max_tokens - done)
            steps.run(loop, turns)
            done += turns
    return _drawn(loop, done)


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
    top_k: int | None = None,
    top_p: float | None = None,
    decoding: str = "auto",
) -> Tensor:
    """Samples image codes from a native `JanusForConditionalGeneration`.

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
        top_k: Draws from this many most likely codes; None = all.
        top_p: Draws from the fewest codes that hold this much probability; None = all.
        decoding: How tokens are fed, see `egrpo.policy.capture.Steps`.

    Returns:
        [N, T] int64.

    Raises:
        UserError: The config has no pad token, or an argument is out of range.
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
            how=Drawing(temperature, greedy, top_k, top_p, cfg_weight),
            padding=padding,
            steps=Steps(decoding),
        )
    return drawn.tokens


def grid_size(config: Any) -> int:
    """Image tokens of one image: the cells of the VQ decoder's grid, by a native JanusConfig."""
    return int(config.vq_config.num_patches) ** 2


def pad_token(model: Any) -> int:
    """Pad token id by the text config, the generation config, or the model's config, in this order.

    Raises:
        UserError: None of them has one.
    """
    for config in (model.config.text_config, model.generation_config, model.config):
        pad = getattr(config, "pad_token_id", None)
        if pad is not None:
            return int(pad)
    raise UserError("the model's config has no pad token: set model.config.text_config.pad_token_id")


def _drawn(loop: Loop, count: int) -> Drawn:
    """What a loop recorded in `count` turns, up to its longest row; copied, for the loop may be used again."""
    tokens, logps, entropy = (x[:, :count] for x in (loop.tokens, loop.logps, loop.entropy))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    truncated = mask.new_zeros(len(mask))
    if loop.eos is not None:
        ends = tokens == loop.eos
        mask = ends.cumsum(dim=1) - ends.long() == 0
        truncated = ~ends.any(dim=1)
        longest = int(mask.sum(dim=1).max())
        tokens, mask, logps, entropy = (x[:, :longest] for x in (tokens, mask, logps, entropy))
    if not bool(torch.isfinite(logps).all()):
        raise NotFiniteError("the model's logits hold NaN or infinity: nothing can be sampled from them")
    return Drawn(tokens.clone(), mask, logps.masked_fill(~mask, 0), entropy.masked_fill(~mask, 0), truncated)


def _check(context_mask: Tensor) -> None:
    if not bool(context_mask[:, -1].all()):
        raise UserError("the last context token of every row must be a real one, not padding")
