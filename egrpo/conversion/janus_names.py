"""Janus's tensors under their original names (deepseek-ai/Janus, MultiModalityCausalLM) and their native ones.

One table serves both directions. It holds for every size of the model; which names exist is what the native model of
a configuration says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

TOWER, VISION = "vision_model.vision_tower.", "model.vision_model."
CODEBOOK = "gen_vision_model.quantize.embedding.weight"
CODEBOOK_USED = "gen_vision_model.quantize.codebook_used"
POSITIONS = TOWER + "pos_embed"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"  # native, one tensor where tied

_ENDS = ("weight", "bias")
# What the original stores and never runs for images or text, and the native model has no place for: how often each
# code was used in a training long past (as many counters whatever the codebook), and the head of the vision tower.
UNUSED = (
    CODEBOOK_USED,
    TOWER + "attn_pool.latent",
    *(f"{TOWER}attn_pool.{part}.{end}" for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2") for end in _ENDS),
)
NUM_COUNTERS = 65536

# Beginnings of names, original and native; # is a number. The first that fits counts. Three rows of equal originals
# are thirds of one tensor, in this order.
TABLE: tuple[tuple[str, str], ...] = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("gen_embed.", "model.generation_embeddings."),
    ("gen_aligner.layers.0.", "model.generation_aligner.fc1."),
    ("gen_aligner.layers.2.", "model.generation_aligner.hidden_layers.0."),
    ("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
    ("gen_head.vision_head.", "model.generation_head.vision_head."),
    ("aligner.layers.0.", "model.aligner.fc1."),
    ("aligner.layers.2.", "model.aligner.hidden_layers.0."),
    (POSITIONS, VISION + "embeddings.position_embedding.weight"),
    (TOWER + "patch_embed.proj.", VISION + "embeddings.patch_embedding."),
    (TOWER + "blocks.#.norm1.", VISION + "encoder.layers.#.layer_norm1."),
    (TOWER + "blocks.#.norm2.", VISION + "encoder.layers.#.layer_norm2."),
    (TOWER + "blocks.#.attn.qkv.", VISION + "encoder.layers.#.self_attn.q_proj."),
    (TOWER + "blocks.#.attn.qkv.", VISION + "encoder.layers.#.self_attn.k_proj."),
    (TOWER + "blocks.#.attn.qkv.", VISION + "encoder.layers.#.self_attn.v_proj."),
    (TOWER + "blocks.#.attn.proj.", VISION + "encoder.layers.#.self_attn.projection_layer."),
    (TOWER + "blocks.#.mlp.", VISION + "encoder.layers.#.mlp."),
    (TOWER + "norm.", VISION + "post_layernorm."),
    ("gen_vision_model.encoder.conv_blocks.#.res.", "model.vqmodel.encoder.down.#.block."),
    ("gen_vision_model.decoder.conv_blocks.#.res.", "model.vqmodel.decoder.up.#.block."),
    ("gen_vision_model.encoder.conv_blocks.", "model.vqmodel.encoder.down."),
    ("gen_vision_model.decoder.conv_blocks.", "model.vqmodel.decoder.up."),
    ("gen_vision_model.encoder.mid.0.", "model.vqmodel.encoder.mid.block_1."),
    ("gen_vision_model.encoder.mid.1.", "model.vqmodel.encoder.mid.attn_1."),
    ("gen_vision_model.encoder.mid.2.", "model.vqmodel.encoder.mid.block_2."),
    ("gen_vision_model.decoder.mid.0.", "model.vqmodel.decoder.mid.block_1."),
    ("gen_vision_model.decoder.mid.1.", "model.vqmodel.decoder.mid.attn_1."),
    ("gen_vision_model.decoder.mid.2.", "model.vqmodel.decoder.mid.block_2."),
    ("gen_vision_model.", "model.vqmodel."),
)


def native_names(original: str) -> list[str]:
    """The native name of a tensor, the three names into which it splits, or none."""
    beginnings = [row for row in TABLE if _pattern(row[0]).match(original)]
    return [_exchanged(original, *row) for row in beginnings if row[0] == beginnings[0][0]]


def original_name(native: str) -> str | None:
    """The original name of a tensor (three native tensors may share one), None for an unknown one."""
    row = next((row for row in TABLE if _pattern(row[1]).match(native)), None)
    return None if row is None else _exchanged(native, row[1], row[0])


def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(r"\#", r"(\d+)"))


def _exchanged(name: str, old: str, new: str) -> str:
    return _pattern(old).sub(new.replace("#", r"\1"), name, count=1)


def to_native(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original tensors, without the unused ones, under native names and in native layout.

    The codebook becomes unit-norm [K, D]: the original normalises it at every use, the native encoder never does.
    """
    native: dict[str, Tensor] = {}
    for name, tensor in original.items():
        names = native_names(name)
        if name == POSITIONS and tensor.ndim == 3:  # [1, N, D]; any other shape is named when it does not fit
            tensor = tensor[0]
        if name == CODEBOOK:
            tensor = unit_norm(tensor)
        # Thirds of one tensor share its memory, which safetensors refuses to save.
        parts = [part.clone() for part in tensor.tensor_split(3)] if len(names) == 3 else [tensor]
        native |= {key: part.contiguous() for key, part in zip(names, parts, strict=True)}
    return native


def to_original(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_native`, but that the codebook stays as it is."""
    groups: dict[str, list[str]] = {}
    for key in native:
        name = original_name(key)
        if name is not None:
            groups.setdefault(name, native_names(name))
    original = {
        name: native[keys[0]] if len(keys) == 1 else torch.cat([native[key] for key in keys])
        for name, keys in groups.items()
    }
    original[POSITIONS] = original[POSITIONS][None]
    return original


def unit_norm(codebook: Tensor) -> Tensor:
    """[K, D] with rows of length 1, computed in float32 and rounded to the codebook's own type."""
    return F.normalize(codebook.float(), dim=-1).to(codebook.dtype)


def unused_zeros(width: int, mlp_width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Zeros for every one of `UNUSED`: the original's loader finds all keys, and nothing that it runs reads them.

    Args:
        width: Of the vision tower.
        mlp_width: Hidden width of its MLPs.
    """
    outputs = {"q": width, "kv": 2 * width, "proj": width, "mlp.fc1": mlp_width, "mlp.fc2": width}
    inputs = {"mlp.fc2": mlp_width}
    shapes: dict[str, tuple[int, ...]] = {CODEBOOK_USED: (NUM_COUNTERS,), TOWER + "attn_pool.latent": (1, 1, width)}
    for part, out in outputs.items():
        shapes[f"{TOWER}attn_pool.{part}.weight"] = (out, inputs.get(part, width))
        shapes[f"{TOWER}attn_pool.{part}.bias"] = (out,)
    shapes |= {f"{TOWER}attn_pool.norm.{end}": (width,) for end in _ENDS}
    return {name: torch.zeros(shapes[name], dtype=dtype) for name in UNUSED}
