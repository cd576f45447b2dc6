"""The sampler once more, slow and plain: no cache, one full forward a token, argmax or a given number."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def image_logits(model, embeds: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
    """Image logits [N, V] after prompt embeddings [N, L, D] and codes [N, t]; no position ids."""
    embeds = torch.cat([embeds, model.prepare_embeddings_for_image_generation(codes)], dim=1)
    mask = torch.cat([mask, mask.new_ones(codes.shape)], dim=1)
    out = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    return model.model.generation_head(out.last_hidden_state[:, -1])


@torch.no_grad()
def sample(model, ids: Tensor, mask: Tensor, *, cfg_weight: float, pad: int, uniforms: Tensor | None = None) -> Tensor:
    """The published loop on rows as given: holes keep their positions, the unconditional mask is all ones."""
    embed = model.get_input_embeddings()
    bare = embed(ids).clone()
    bare[:, 1:-1] = embed(torch.tensor(pad))
    mask = mask.long()
    codes = torch.zeros(len(ids), 0, dtype=torch.long)
    for t in range(16):
        c = image_logits(model, embed(ids), mask, codes)
        u = image_logits(model, bare, torch.ones_like(mask), codes)
        logits = u + cfg_weight * (c - u)
        if uniforms is None:
            token = logits.argmax(dim=-1)
        else:
            cdf = logits.double().softmax(dim=-1).cumsum(dim=-1)
            token = torch.searchsorted(cdf, uniforms[:, t : t + 1].contiguous(), right=True)[:, 0]
        codes = torch.cat([codes, token[:, None]], dim=1)
    return codes
