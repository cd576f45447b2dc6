"""The table of names and the configuration, both ways; no shared material needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from egrpo.conversion import janus
from egrpo.conversion.janus_config import SIGLIP_LARGE, VQ_16, TokenIds, native_config, original_config, original_dims
from egrpo.conversion.janus_names import (
    POSITIONS,
    TABLE,
    TOWER,
    native_names,
    original_name,
    to_native,
    to_original,
)
from tests.conversion.janus_pieces import QKV, same

# Without the shared material: the official sizes.
OFFICIAL: dict[str, Any] = {
    "model_type": "multi_modality",
    "language_config": {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 16384,
    },
    "vision_config": {
        "cls": "CLIPVisionTower",
        "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_layer": -1},
    },
    "aligner_config": {"params": {"depth": 2, "input_dim": 1024, "n_embed": 2048, "projector_type": "mlp_gelu"}},
    "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
    "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": 2048, "projector_type": "mlp_gelu"}},
    "gen_head_config": {
        "cls": "vision_head",
        "params": {"image_token_embed": 2048, "image_token_size": 16384, "n_embed": 2048},
    },
}


def test_names_and_their_inverse() -> None:
    assert len(set(TABLE)) == len(TABLE) == len({native for _, native in TABLE})
    config = native_config(OFFICIAL, {}, TokenIds(), Path("config.json"))
    names = list(janus.empty_model(config).state_dict())
    originals = {original_name(name) for name in names}
    assert None not in originals
    assert sorted(native for name in originals for native in native_names(str(name))) == sorted(names)
    assert {original_name(native) for name in originals for native in native_names(str(name))} == originals
    expected = {
        "language_model.model.layers.23.mlp.up_proj.weight": ["model.language_model.layers.23.mlp.up_proj.weight"],
        "gen_vision_model.decoder.conv_blocks.0.res.2.nin_shortcut.bias": [
            "model.vqmodel.decoder.up.0.block.2.nin_shortcut.bias"
        ],
        "gen_vision_model.encoder.mid.1.proj_out.weight": ["model.vqmodel.encoder.mid.attn_1.proj_out.weight"],
        "gen_vision_model.decoder.conv_blocks.0.attn.1.q.weight": ["model.vqmodel.decoder.up.0.attn.1.q.weight"],
        TOWER + "blocks.10.attn.qkv.bias": [
            f"model.vision_model.encoder.layers.10.self_attn.{part}_proj.bias" for part in "qkv"
        ],
        "gen_head.output_mlp_projector.weight": ["model.generation_head.proj_out.weight"],
        TOWER + "norm.weight": ["model.vision_model.post_layernorm.weight"],
        "something.else": [],
    }
    assert {name: native_names(name) for name in expected} == expected
    assert original_name("model.something.else") is None


def test_the_official_size_is_that_of_janus_pro_1b() -> None:
    config = native_config(OFFICIAL, {}, TokenIds(), Path("config.json"))
    state = janus.empty_model(config).state_dict()
    assert state["model.vqmodel.decoder.conv_in.weight"].shape == (512, 256, 3, 3)
    assert state["model.vision_model.encoder.layers.23.mlp.fc1.weight"].shape == (4096, 1024)
    assert (config.vq_config.num_patches, config.vision_config.num_image_tokens) == (24, 576)
    # 4.18 GB of bfloat16 are published, the unused parts with them.
    assert sum(t.numel() for t in state.values()) * 2 == pytest.approx(4.18e9, rel=0.01)
    assert original_dims(config) == {} and SIGLIP_LARGE["width"] == 1024 and VQ_16["z_channels"] == 256
    told = original_config(config, "bfloat16")
    again = native_config(told, {}, TokenIds(), Path("config.json"))
    assert again.to_dict() == config.to_dict()


def test_llamas_defaults_fill_a_short_configuration() -> None:
    short = OFFICIAL | {"language_config": {"num_hidden_layers": 30, "vocab_size": 102400}}  # as the 7B model's
    text = native_config(short, {}, TokenIds(), Path("config.json")).text_config
    assert (text.hidden_size, text.intermediate_size, text.num_attention_heads) == (4096, 11008, 32)
    assert (text.num_key_value_heads, text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (32, 1e-6, 10000.0)
    scaled = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}
    config = native_config(OFFICIAL | {"language_config": scaled}, {}, TokenIds(), Path("config.json"))
    assert config.text_config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    language = original_config(config, "float32")["language_config"]
    assert language["rope_theta"] == 5e5 and language["rope_scaling"] == {"type": "linear", "factor": 2.0}


def test_layout_changes_are_undone() -> None:
    torch.manual_seed(0)
    state = {POSITIONS: torch.randn(1, 4, 2), QKV: torch.randn(6, 2), "gen_embed.weight": torch.randn(3, 2)}
    native = to_native(state)
    assert {name: tuple(tensor.shape) for name, tensor in native.items() if "layers" in name} == {
        f"model.vision_model.encoder.layers.1.self_attn.{part}_proj.weight": (2, 2) for part in "qkv"
    }
    assert same(to_original(native), state)


def test_the_heads_widths_are_named_the_other_way_round() -> None:
    wide = OFFICIAL["gen_head_config"]["params"] | {"n_embed": 96}
    config = native_config(
        OFFICIAL | {"gen_head_config": {"cls": "vision_head", "params": wide}}, {}, TokenIds(), Path("config.json")
    )
    head = janus.empty_model(config).model.generation_head
    assert (head.proj_out.in_features, head.proj_out.out_features, head.vision_head.in_features) == (96, 2048, 2048)
    assert original_config(config, "float32")["gen_head_config"]["params"] == wide
