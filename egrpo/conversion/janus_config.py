"""Janus's configuration in the original schema (deepseek-ai/Janus) and in transformers', both ways.

The original fixes most sizes of its vision tower and of its VQ model by name. Checkpoints of other sizes bring them in
`tiny_dims.json`; the original's own code cannot load those unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import JanusConfig

from egrpo.conversion.checkpoints import ConversionError, read_json

DIMS_FILE = "tiny_dims.json"
SIGLIP, VQ = "siglip_large_patch16_384", "VQ-16"
SIGLIP_LARGE: dict[str, Any] = {
    "width": 1024,
    "layers": 24,
    "heads": 16,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 384,
    "layer_norm_eps": 1e-6,
}
VQ_16: dict[str, Any] = {
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "z_channels": 256,
    "num_res_blocks": 2,
}
# What the native model cannot do otherwise: anything else would convert into another model without a word.
VQ_FIXED: dict[str, Any] = {"codebook_l2_norm": True, "group_norm_groups": 32, "group_norm_eps": 1e-6}
FIXED: dict[str, Any] = {
    "vision_config.cls": "CLIPVisionTower",
    "vision_config.params.select_layer": -1,
    "vision_config.params.pixel_mean": None,  # the original's tower would normalise a second time
    "aligner_config.params.projector_type": "mlp_gelu",
    "aligner_config.params.depth": 2,
    "gen_vision_config.cls": VQ,
    "gen_aligner_config.params.projector_type": "mlp_gelu",
    "gen_aligner_config.params.depth": 2,
    "gen_head_config.cls": "vision_head",
}
# Absent ones have Llama's defaults, in the original too (the 7B model's file tells only four).
LLAMA_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
)
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class TokenIds:
    """Ids of the tokens that stand for something; None = not known."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None  # takes the place of the prompt in unconditional rows
    begin_of_image: int | None = None
    end_of_image: int | None = None
    image_placeholder: int | None = None  # one a patch of an image that is looked at


def read_dims(source: Path) -> dict[str, Any]:
    """`tiny_dims.json` of `source`; empty where there is none, and then the sizes are the official ones."""
    path = source / DIMS_FILE
    return read_json(path) if path.is_file() else {}


def native_config(original: Mapping[str, Any], dims: Mapping[str, Any], ids: TokenIds, where: Path) -> JanusConfig:
    """The native configuration of an original config.json.

    Args:
        original: Content of config.json.
        dims: Content of tiny_dims.json, or nothing.
        ids: Special tokens.
        where: config.json's path, for errors.

    Raises:
        ConversionError: a setting is missing, contradicts another, or has no native counterpart.
    """
    vision, vq = SIGLIP_LARGE | dict(dims.get("vision", {})), VQ_16 | dict(dims.get("vq", {}))
    _check(original, dims, vq, where)
    try:
        vision_config, vq_config = _vision(original, vision), _vq(original, vq, where)
        text_config = _llama(original["language_config"], ids, where)
    except KeyError as error:
        raise ConversionError(f"{where} has no {error}: it must be the configuration of the original Janus") from error
    placeholder: dict[str, Any] = {} if ids.image_placeholder is None else {"image_token_id": ids.image_placeholder}
    return JanusConfig(
        text_config=text_config,
        vision_config=vision_config,
        vq_config=vq_config,
        tie_word_embeddings=False,  # True by default, and the text head would be lost at loading
        **placeholder,
    )


def _params(original: Mapping[str, Any], name: str) -> Any:
    return original[f"{name}_config"]["params"]


def _vision(original: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The native vision tower and aligner; `sizes` are those that the original fixes by name."""
    aligner, tower = (_params(original, name) for name in ("aligner", "vision"))
    side = tower.get("image_size", sizes["image_size"])
    return {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "mlp_ratio": sizes["mlp_ratio"],
        "patch_size": sizes["patch_size"],
        "image_size": side,
        "layer_norm_eps": sizes["layer_norm_eps"],
        "projection_dim": aligner["n_embed"],
        "depth": aligner["depth"],
        "num_image_tokens": (side // sizes["patch_size"]) ** 2,
    }


def _vq(original: Mapping[str, Any], sizes: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The native VQ model, its aligner and its head; `sizes` are those that the original fixes by name."""
    codes, aligner, head = (_params(original, name) for name in ("gen_vision", "gen_aligner", "gen_head"))
    native = {
        "embed_dim": codes["n_embed"],
        "num_embeddings": codes["image_token_size"],
        "latent_channels": sizes["z_channels"],
        "base_channels": sizes["base_channels"],
        "channel_multiplier": sizes["channel_multiplier"],
        "num_res_blocks": sizes["num_res_blocks"],
        "num_hidden_layers": aligner["depth"],
        # Named the other way round there: n_embed is what the head reads, image_token_embed its inside.
        "image_token_embed_dim": head["n_embed"],
        "projection_dim": head["image_token_embed"],
    }
    if aligner["n_embed"] != head["image_token_embed"]:  # one number in the native model
        raise ConversionError(
            f"{where}: gen_aligner_config's n_embed {aligner['n_embed']} is not gen_head_config's "
            f"image_token_embed {head['image_token_embed']}; the native Janus has one width for both"
        )
    return native


def _llama(given: Mapping[str, Any], ids: TokenIds, where: Path) -> dict[str, Any]:
    if given.get("tie_word_embeddings"):
        raise ConversionError(f"{where} ties the text head to the embedding, which no Janus does: set it to false")
    rope = {"rope_type": "default", "rope_theta": given.get("rope_theta", ROPE_THETA)}
    scaling = dict(given.get("rope_scaling") or {})
    if "type" in scaling:  # as old versions spell it
        scaling["rope_type"] = scaling.pop("type")
    return {
        "model_type": "llama",
        **{key: given[key] for key in LLAMA_KEYS if key in given},
        "rope_parameters": rope | scaling,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "pad_token_id": ids.pad,
        "tie_word_embeddings": False,
    }


def _check(original: Mapping[str, Any], dims: Mapping[str, Any], vq: Mapping[str, Any], where: Path) -> None:
    kind = original.get("model_type")
    if kind != "multi_modality":
        hint = "it is in transformers' format already" if kind == "janus" else "give the folder of an original Janus"
        raise ConversionError(f"{where} says model_type {kind!r}, wanted 'multi_modality': {hint}")
    wanted = FIXED if dims else FIXED | {"vision_config.params.model_name": SIGLIP}
    found = {name: _at(original, name) for name in wanted}
    wrong = [f"{name}={found[name]!r}, wanted {want!r}" for name, want in wanted.items() if found[name] != want]
    wrong += [f"{DIMS_FILE}: vq.{k}={vq[k]!r}, wanted {v!r}" for k, v in VQ_FIXED.items() if vq.get(k, v) != v]
    if wrong:
        raise ConversionError(f"{where} is not that of a Janus that transformers can hold: {'; '.join(wrong)}")


def _at(mapping: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def original_config(config: Any, dtype: str) -> dict[str, Any]:
    """config.json in the original schema for a native configuration; sizes fixed by name are left out."""
    text, vision, vq = (part.to_dict() for part in (config.text_config, config.vision_config, config.vq_config))
    rope = dict(text["rope_parameters"])
    language = {key: text[key] for key in LLAMA_KEYS if text.get(key) is not None}
    language |= {"model_type": "llama", "rope_theta": rope.pop("rope_theta"), "torch_dtype": dtype}
    kind = rope.pop("rope_type")
    if kind != "default":
        language["rope_scaling"] = {"type": kind, **rope}

    def part(cls: str, kind: str, **params: Any) -> dict[str, Any]:
        return {"cls": cls, "model_type": kind, "params": params}

    mlp = {"depth": 2, "projector_type": "mlp_gelu"}
    tower = {"image_size": vision["image_size"], "model_name": SIGLIP, "select_feature": "same", "select_layer": -1}
    codes, inner = vq["num_embeddings"], vq["projection_dim"]
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "language_config": language,
        "vision_config": part("CLIPVisionTower", "vision", **tower),
        "aligner_config": part(
            "MlpProjector", "aligner", input_dim=vision["hidden_size"], n_embed=vision["projection_dim"], **mlp
        ),
        "gen_vision_config": part(VQ, "gen_vision", image_token_size=codes, n_embed=vq["embed_dim"]),
        "gen_aligner_config": part("MlpProjector", "gen_aligner", input_dim=vq["embed_dim"], n_embed=inner, **mlp),
        "gen_head_config": part(
            "vision_head",
            "gen_head",
            image_token_embed=inner,
            image_token_size=codes,
            n_embed=vq["image_token_embed_dim"],
        ),
    }


def original_dims(config: Any) -> dict[str, Any]:
    """Content of `tiny_dims.json`, empty where all sizes are those that the original fixes by name."""
    v, q = config.vision_config, config.vq_config
    vision = {
        "width": v.hidden_size,
        "layers": v.num_hidden_layers,
        "heads": v.num_attention_heads,
        "mlp_ratio": v.mlp_ratio,
        "patch_size": v.patch_size,
        "image_size": v.image_size,
        "layer_norm_eps": v.layer_norm_eps,
    }
    vq = {
        "base_channels": q.base_channels,
        "channel_multiplier": list(q.channel_multiplier),
        "z_channels": q.latent_channels,
        "num_res_blocks": q.num_res_blocks,
    }
    return {} if (vision, vq) == (SIGLIP_LARGE, VQ_16) else {"vision": vision, "vq": vq}
