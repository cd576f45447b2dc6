"""One decoder layer for one new token a row, as a function of tensors that a compiler fuses once for all layers.

Its mathematics is that of transformers' LlamaDecoderLayer. A whole model compiled as it stands costs minutes, as its
layers are compiled one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In the order in which `layer_step` takes them.
PARTS = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def can_fuse(language_model: Any) -> bool:
    """Whether the layers are plain ones of Llama: no adapters, no biases, no hooks, SwiGLU."""
    layers = getattr(language_model, "layers", [])
    if not len(layers) or getattr(language_model.config, "hidden_act", None) != "silu":
        return False
    for layer in layers:
        modules = dict(layer.named_modules())
        if not all(name in modules for name in PARTS) or {f"{name}.weight" for name in PARTS} != set(
            dict(layer.named_parameters())
        ):
            return False
        linear = [modules[name] for name in PARTS if "norm" not in name]
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules.values())
        if hooked or not all(type(part) is nn.Linear for part in linear):
            return False
    return True


def layer_weights(layer: nn.Module) -> tuple[Tensor, ...]:
    """The layer's weights, by reference."""
    return tuple(layer.get_parameter(f"{name}.weight") for name in PARTS)


@lru_cache(maxsize=1)
def compiled() -> Callable[..., Tensor]:
    """`layer_step`, fused by torch.compile."""
    # A variant for each type and number of rows of plans, images and validations; at the limit torch gives up.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(layer_step, fullgraph=True, dynamic=None)


def layer_step(
    x: Tensor,
    weights: tuple[Tensor, ...],
    rotation: tuple[Tensor, Tensor],
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
    column: Tensor,
    eps: float,
) -> Tensor:
    """Runs a layer for one token a row, and writes its keys and values.

    Args:
        x: [R, D].
        weights: As `layer_weights` gives them.
        rotation: cos and sin [R, 1, H] of the rows' positions, H the width of a head.
        mask: [R, 1, 1, C] bool, columns that are looked at, the new one among them.
        keys: [R, heads, C, H], changed in place.
        values: The same.
        column: [1] int64, where the new ones go.
        eps: Of the norms.

    Returns:
        [R, D].
    """
    first, to_query, to_key, to_value, out, second, gate, up, down = weights
    rows, heads, width = len(x), keys.shape[1], keys.shape[3]
    h = _norm(x, first, eps)
    query = _rotate(F.linear(h, to_query).view(rows, -1, width), *rotation)
    key = _rotate(F.linear(h, to_key).view(rows, heads, width), *rotation)
    keys.index_copy_(2, column, key[:, :, None])
    values.index_copy_(2, column, F.linear(h, to_value).view(rows, heads, 1, width))
    grouped = query.shape[1] != heads
    attended = F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=mask, enable_gqa=grouped)
    x = x + F.linear(attended.reshape(rows, -1), out)
    h = _norm(x, second, eps)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[R, heads, H] turned by the angles of its position."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin
