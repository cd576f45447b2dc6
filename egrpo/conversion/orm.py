"""The outcome reward model (ORM): LLaVA-NeXT's llava_qwen format -> LlavaOnevisionForConditionalGeneration.

Upstream reads the output of the last *stored* encoder layer of its SigLIP tower, before `post_layernorm` (it deletes
the last of the 27 layers of google/siglip-so400m-patch14-384 and replaces the head). The native model does the same
with that number of layers, `vision_feature_layer=-1` and `vision_feature_select_strategy="full"`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AddedToken,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

from egrpo.conversion.checkpoints import (
    ConversionError,
    Summary,
    check_keys,
    find_file,
    load_sharded,
    read_json,
    save_converted,
)

IMAGE_TOKEN = "<image>"
GENERATION_FILE = "generation_config.json"  # top_k and top_p, which the published reward samples with

TOWER = "model.vision_tower.vision_tower.vision_model."
# Original -> native, first match wins. What upstream never runs (the tower's pooling head) is left out, where a
# checkpoint has it; nothing else is.
PREFIXES = {
    TOWER: "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.image_newline": "model.image_newline",
    "model.": "model.language_model.",
    "lm_head.": "lm_head.",
}
DROPPED = (TOWER + "head.",)
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"

# google/siglip-so400m-patch14-384 without its last layer, unless `tiny_dims.json` says otherwise.
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# What the native model does, and what it is called in the original's config.json.
EXPECTED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",  # the newline after the image's tokens
    "mm_vision_select_feature": "patch",
}
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
)


def convert(source: Path, target: Path) -> Summary:
    """Writes weights (types as stored), tokenizer, image processor and generation settings to `target`.

    Args:
        source: Folder with config.json, the weights (one file or shards), tokenizer files, and `tiny_dims.json` where
            the vision tower is not SigLIP SO400M.

    Raises:
        ConversionError: a file is missing, a key is missing or surplus, a shape or a setting does not fit.
    """
    original = read_json(source / "config.json")
    stored = load_sharded(source)
    tokenizer, image_token = tokenizer_with_image(source)
    text, vision = text_config(original, source), vision_config(source)
    no_room = image_token >= text.vocab_size
    text.vocab_size = max(text.vocab_size, image_token + 1)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        video_token_index=image_token,  # there are no videos, but an id outside the vocabulary would be a trap
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=original.get("image_grid_pinpoints"),
        tie_word_embeddings=text.tie_word_embeddings,
    )
    state = native_state(stored, config, source)
    if no_room:
        state = with_vocabulary(state, text.vocab_size)
    summary = save_converted("orm", empty_model(config), state, source, target)
    tokenizer.save_pretrained(target)
    image_processor(cast(int, vision.image_size)).save_pretrained(target)
    if (source / GENERATION_FILE).is_file():
        shutil.copyfile(source / GENERATION_FILE, target / GENERATION_FILE)
    return summary


def empty_model(config: LlavaOnevisionConfig) -> LlavaOnevisionForConditionalGeneration:
    """The native model without memory for its weights."""
    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(config)


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """`name` with the first of `prefixes` that it has exchanged."""
    old = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if old is None else prefixes[old] + name.removeprefix(old)


def native_state(stored: Mapping[str, Tensor], config: LlavaOnevisionConfig, source: Path) -> dict[str, Tensor]:
    """The stored tensors under native names.

    Raises:
        ConversionError: keys are missing or surplus, by their original names; a tied lm_head is stored and differs.
    """
    back = {native: original for original, native in PREFIXES.items()}
    wanted = {renamed(name, back) for name in empty_model(config).state_dict()}
    found = {name: tensor for name, tensor in stored.items() if not name.startswith(DROPPED)}
    tied = config.tie_word_embeddings
    check_keys({*found, HEAD} if tied else found, wanted, source)
    state = {renamed(name, PREFIXES): tensor for name, tensor in found.items()}
    if tied and not torch.equal(state.setdefault(HEAD, state[EMBEDDING]), state[EMBEDDING]):
        raise ConversionError(
            f"{source} stores an lm_head other than its embedding: set tie_word_embeddings to false in its config.json"
        )
    return state


def vision_config(source: Path) -> SiglipVisionConfig:
    """The tower's dimensions: `tiny_dims.json`, or SigLIP SO400M."""
    path = source / "tiny_dims.json"
    dims: dict[str, Any] = SIGLIP_SO400M | (read_json(path).get("vision", {}) if path.is_file() else {})
    return SiglipVisionConfig(**dims, vision_use_head=False)


def text_config(original: Mapping[str, Any], source: Path) -> Qwen2Config:
    """The language model's part of the original's config.json.

    Raises:
        ConversionError: the original lacks a setting, or computes something else than the native model.
    """
    wrong = [
        f"{key}={original.get(key)!r}, wanted {want!r}" for key, want in EXPECTED.items() if original.get(key) != want
    ]
    wrong += [f"no {key}" for key in (*TEXT_KEYS[:6], "rope_theta") if key not in original]
    if wrong:
        raise ConversionError(f"{source / 'config.json'} is not that of an outcome reward model: {'; '.join(wrong)}")
    rope = {"rope_type": "default", "rope_theta": original["rope_theta"], **(original.get("rope_scaling") or {})}
    return Qwen2Config(
        **{key: original[key] for key in TEXT_KEYS if key in original},
        rope_parameters=rope,
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )


def tokenizer_with_image(source: Path) -> tuple[Qwen2Tokenizer, int]:
    """The tokenizer with a special token for the image (upstream marks it by the id -200), and that token's id."""
    path = find_file(source, ("tokenizer.json", "vocab.json"))
    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(source)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ConversionError(f"{path} is no tokenizer of Qwen2: {error}") from error
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def with_vocabulary(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """`state` with rows of zeros up to `size` tokens; the image's features take the place of its embedding."""
    grown = {name: F.pad(state[name], (0, 0, 0, size - state[name].shape[0])) for name in (EMBEDDING, HEAD)}
    return state | grown


def image_processor(side: int) -> LlavaOnevisionImageProcessorPil:
    """SigLIP's pixels: side x side, bicubic, -1..1."""
    return LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
