"""HPS_v2.1_compressed.pt, a CLIP in open_clip's names and layout, becomes a transformers CLIPModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from egrpo.conversion.checkpoints import (
    ConversionError,
    Summary,
    check_keys,
    find_file,
    load_state,
    read_json,
    save_converted,
)

# ViT-H-14, for the official file, which comes without its configuration.
VIT_H_14 = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
HEAD_WIDTH, MLP_RATIO = 64, 4.0  # open_clip's defaults where its configuration says nothing
TOP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
TRANSPOSED = ("text_projection", "visual.proj")  # open_clip multiplies from the right: [width, embed_dim]
BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def convert(source: Path, target: Path) -> Summary:
    """Writes CLIPModel, tokenizer and image processor into `target`; the dtype stays that of the file.

    Args:
        source: The official file, or a folder with it. vocab.json and merges.txt (the tokenizer of
            openai/clip-vit-large-patch14) must lie beside it; open_clip_config.json may, else it is a ViT-H-14.

    The saved image processor is CLIP's usual one, so that transformers loads it. HPS resizes and pads differently:
    `egrpo.rewards.hps.pixel_values`.

    Raises:
        ConversionError: a file is missing, or keys, shapes or vocabulary are not those of the configuration.
    """
    weights = find_file(source, ("HPS_v2.1_compressed.pt", "*.pt", "*.safetensors"))
    official = load_state(weights, unwrap=("state_dict",), strip="module.")
    tokenizer = load_tokenizer(weights.parent)
    config = read_config(weights.parent / "open_clip_config.json", tokenizer)
    state = translate(official, config, weights)
    with torch.device("meta"):
        model = CLIPModel(config)
    summary = save_converted("hps", model, state, weights, target)
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    tokenizer.save_pretrained(target)
    side = config.vision_config.image_size
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        target
    )
    return summary


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from vocab.json and merges.txt in `folder`.

    Raises:
        ConversionError: one is missing or unreadable, or end of text is not the highest id, where HPS reads the text.
    """
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    missing = [path.name for path in (vocab, merges) if not path.is_file()]
    if missing:
        raise ConversionError(
            f"{folder} lacks {' and '.join(missing)}: the tokenizer of HPS is that of openai/clip-vit-large-patch14; "
            "put its two files vocab.json and merges.txt beside the checkpoint (python -m egrpo.download what=rewards "
            "brings them)"
        )
    ids = read_json(vocab)
    try:
        tokenizer = CLIPTokenizer(vocab=str(vocab), merges=str(merges))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ConversionError(f"{vocab} and {merges} are no tokenizer of CLIP: {error}") from error
    if ids.get(tokenizer.eos_token) != max(ids.values()) or len(tokenizer) != len(ids):
        raise ConversionError(
            f"{vocab} is no vocabulary of CLIP: {tokenizer.bos_token} must be in it and {tokenizer.eos_token} come last"
        )
    return tokenizer


def read_config(path: Path, tokenizer: CLIPTokenizer) -> Any:
    """CLIPConfig of the configuration in open_clip's form at `path`, or that of ViT-H-14 where there is none.

    Raises:
        ConversionError: a number is missing, or the vocabulary has another size.
    """
    given: dict[str, Any] = read_json(path) if path.is_file() else VIT_H_14
    given = given.get("model_cfg", given)  # so nested where it comes from the Hugging Face Hub
    try:
        vision, text, embed_dim = given["vision_cfg"], given["text_cfg"], given["embed_dim"]
        shared = {"projection_dim": embed_dim, "hidden_act": "quick_gelu" if given.get("quick_gelu") else "gelu"}
        vision_config = {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "num_attention_heads": vision["width"] // vision.get("head_width", HEAD_WIDTH),
            **_tower(vision),
            **shared,
        }
        text_config = {
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "num_attention_heads": text["heads"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": 0,
            **_tower(text),
            **shared,
        }
    except KeyError as error:
        raise ConversionError(f"{path} has no {error}: it must be the open_clip configuration of the model") from error
    if len(tokenizer) != text["vocab_size"]:
        raise ConversionError(
            f"vocab.json in {path.parent} has {len(tokenizer)} entries, the model's vocabulary {text['vocab_size']}: "
            "take the tokenizer files that belong to the checkpoint"
        )
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=embed_dim)


def _tower(given: dict[str, Any]) -> dict[str, int]:
    width = given["width"]
    return {
        "hidden_size": width,
        "num_hidden_layers": given["layers"],
        "intermediate_size": int(width * given.get("mlp_ratio", MLP_RATIO)),
    }


def native_names(config: Any) -> dict[str, list[str]]:
    """Every open_clip key -> its native name, or the three names into which it splits. No key is dropped."""
    names = {key: [native] for key, native in TOP.items()}
    towers = (
        ("visual.transformer", "vision_model", config.vision_config.num_hidden_layers),
        ("transformer", "text_model", config.text_config.num_hidden_layers),
    )
    for old, new, layers in towers:
        for i in range(layers):
            for end in ("weight", "bias"):
                block, layer = f"{old}.resblocks.{i}", f"{new}.encoder.layers.{i}"
                names |= {f"{block}.{a}.{end}": [f"{layer}.{b}.{end}"] for a, b in BLOCK.items()}
                names[f"{block}.attn.in_proj_{end}"] = [f"{layer}.self_attn.{p}_proj.{end}" for p in "qkv"]
    return names


def translate(state: dict[str, Tensor], config: Any, source: Path) -> dict[str, Tensor]:
    """Tensors under open_clip's names -> tensors under native names, in native layout.

    Raises:
        ConversionError: keys are missing or surplus; they are named.
    """
    names = native_names(config)
    check_keys(state, names, source)
    native: dict[str, Tensor] = {}
    for key, targets in names.items():
        tensor = state[key]
        if key in TRANSPOSED and tensor.ndim == 2:  # any other shape is named by save_converted
            tensor = tensor.T.contiguous()
        parts = tensor.tensor_split(3) if len(targets) == 3 else (tensor,)
        native |= dict(zip(targets, parts))
    return native
