"""Janus to the native format: every key lands where it belongs, or the error names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, JanusForConditionalGeneration

from egrpo.base.targets import MARK
from egrpo.conversion import janus
from egrpo.conversion.checkpoints import ConversionError
from egrpo.conversion.janus_config import TokenIds, native_config
from egrpo.conversion.janus_names import (
    CODEBOOK,
    POSITIONS,
    TOWER,
    UNUSED,
    native_names,
    to_original,
)
from egrpo.policy.loading import begin_of_image_token
from egrpo.policy.sampling import pad_token
from tests.conversion.janus_pieces import NATIVE_CODEBOOK, QKV, command, edit, same_files, write
from tests.conversion.shards import shard


def test_plain_transformers_loads_the_directory(janus_converted: Path) -> None:
    model, info = JanusForConditionalGeneration.from_pretrained(janus_converted, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    config = model.config
    assert json.loads((janus_converted / "config.json").read_text())["tie_word_embeddings"] is False
    assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (300, 301)
    assert (pad_token(model), begin_of_image_token(model, None), config.image_token_id) == (302, 303, 305)
    assert (config.vq_config.num_patches, config.vision_config.num_image_tokens) == (8, 64)
    told = GenerationConfig.from_pretrained(janus_converted)
    assert (told.bos_token_id, told.eos_token_id, told.pad_token_id) == (300, 301, 302)
    assert told.generation_kwargs == {"boi_token_id": 303}


def test_every_stored_tensor_arrives(janus_converted: Path, janus_stored: dict[str, Tensor]) -> None:
    native = load_file(janus_converted / "model.safetensors")
    arrived: set[str] = set()
    for name, tensor in janus_stored.items():
        names = native_names(name)
        if name in UNUSED:
            assert not any(key in native for key in names)
            continue
        arrived |= set(names)
        if name == CODEBOOK:
            norms = native[NATIVE_CODEBOOK].norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms))
            assert (tensor.norm(dim=1) - 1).abs().max() > 0.1  # else nothing would be tested
            torch.testing.assert_close(native[NATIVE_CODEBOOK] * tensor.norm(dim=1, keepdim=True), tensor)
        elif name == POSITIONS:
            assert torch.equal(native[names[0]], tensor[0])
        else:
            assert torch.equal(torch.cat([native[key] for key in names]), tensor), name
    assert arrived == native.keys()
    q, k, v = (native[f"model.vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv")
    assert (
        torch.equal(q, janus_stored[QKV][:32])
        and torch.equal(k, janus_stored[QKV][32:64])
        and torch.equal(v, janus_stored[QKV][64:])
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_give_the_same_directory(
    suffix: str, janus_copy: Path, janus_stored: dict[str, Tensor], janus_converted: Path, tmp_path: Path
) -> None:
    shard(janus_copy, janus_stored, suffix)
    janus.convert(janus_copy, tmp_path / "target")
    assert same_files(tmp_path / "target", janus_converted)


def test_one_bin_file_gives_the_same_directory(
    janus_copy: Path, janus_stored: dict[str, Tensor], janus_converted: Path, tmp_path: Path
) -> None:
    torch.save(janus_stored, janus_copy / "pytorch_model.bin")
    janus.convert(janus_copy, tmp_path / "target")
    assert same_files(tmp_path / "target", janus_converted)


def test_missing_and_surplus_keys_bear_their_original_names(
    janus_copy: Path, janus_stored: dict[str, Tensor], tmp_path: Path
) -> None:
    foreign = ["gen_vision_model.loss.discriminator.weight", TOWER + "attn_pool.q_norm.weight"]
    write(janus_copy, {n: t for n, t in janus_stored.items() if n != QKV} | {name: torch.zeros(1) for name in foreign})
    with pytest.raises(ConversionError) as failure:
        janus.convert(janus_copy, tmp_path / "target")
    assert f"1 keys missing ({QKV})" in str(failure.value)
    assert f"2 keys surplus ({', '.join(foreign)})" in str(failure.value)
    assert not (tmp_path / "target").exists()


WRONG = [
    ("config.json", "model_type", "janus", "in transformers' format already"),
    ("config.json", "model_type", "llama", "wanted 'multi_modality'"),
    ("config.json", "vision_config.params.select_layer", -2, r"select_layer=-2, wanted -1"),
    ("config.json", "vision_config.params.select_layer", None, r"select_layer=None, wanted -1"),  # -2 by default
    ("config.json", "vision_config.params.pixel_mean", [0.5] * 3, "pixel_mean"),
    ("config.json", "gen_vision_config.cls", "VQ-8", "gen_vision_config.cls='VQ-8', wanted 'VQ-16'"),
    ("config.json", "aligner_config.params.depth", 3, "aligner_config.params.depth=3, wanted 2"),
    ("config.json", "gen_head_config.params.image_token_embed", 96, "one width for both"),
    ("config.json", "gen_head_config.params.n_embed", None, "has no 'n_embed'"),
    ("config.json", "language_config.tie_word_embeddings", True, "set it to false"),
    ("config.json", "language_config.vocab_size", 304, r"no room for the special tokens end_of_image 304"),
    ("config.json", "gen_vision_config.params.n_embed", 16, r"is \(1024, 8\), wanted \(1024, 16\)"),
    ("tiny_dims.json", "vq.codebook_l2_norm", False, "codebook_l2_norm=False, wanted True"),
    ("tiny_dims.json", "special_token_ids.boi", 303, "special_token_ids that no Janus has: boi"),
    ("tiny_dims.json", "vision.layers", 3, r"12 keys missing \(vision_model\.vision_tower\.blocks\.2\."),
]


@pytest.mark.parametrize(("file", "setting", "value", "message"), WRONG)
def test_settings_without_a_native_counterpart_are_refused(
    file: str, setting: str, value: Any, message: str, janus_copy: Path, janus_stored: dict[str, Tensor], tmp_path: Path
) -> None:
    write(janus_copy, janus_stored)
    edit(janus_copy / file, setting, value)
    with pytest.raises(ConversionError, match=message):
        janus.convert(janus_copy, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_command(janus_source: Path, janus_converted: Path, tmp_path: Path) -> None:
    told = command("-m", "egrpo.convert", "kind=janus", f"source={janus_source}", f"target={tmp_path / 'native'}")
    assert f"janus: 410 tensors, 1,928,331 parameters, float32 -> {tmp_path / 'native'}" in told
    assert "(without a tokenizer" in told and same_files(tmp_path / "native", janus_converted, (MARK,))


MEASURE = """
import sys
from pathlib import Path
from egrpo.conversion import janus, janus_original
def memory(key):
    # Of this program alone: ru_maxrss begins with what the process held before it became this program.
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0])
before = memory("VmRSS")
module = {"janus": janus, "janus_original": janus_original}[sys.argv[1]]
module.convert(Path(sys.argv[2]), Path(sys.argv[3]))
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_peak_memory_is_below_1_3_times_the_weights(suffix: str, janus_copy: Path, tmp_path: Path) -> None:
    language = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "vocab_size": 8000}
    for key, value in language.items():
        edit(janus_copy / "config.json", f"language_config.{key}", value)
    for setting in ("aligner_config.params.n_embed", "gen_aligner_config.params.n_embed"):
        edit(janus_copy / "config.json", setting, 1024)
    edit(janus_copy / "config.json", "gen_head_config.params.n_embed", 1024)
    edit(janus_copy / "config.json", "gen_head_config.params.image_token_embed", 1024)
    original, dims = (json.loads((janus_copy / name).read_text()) for name in ("config.json", "tiny_dims.json"))
    model = janus.empty_model(native_config(original, dims, TokenIds(), janus_copy))
    state = to_original({name: torch.ones(tensor.shape) for name, tensor in model.state_dict().items()})
    size = sum(tensor.nbytes for tensor in state.values())
    assert size > 400e6
    shard(janus_copy, state, suffix)
    del state
    for kind, folders in (
        ("janus", (janus_copy, tmp_path / "native")),
        ("janus_original", (tmp_path / "native", tmp_path / "o")),
    ):
        grown = 1024 * int(command("-c", MEASURE, kind, *map(str, folders)).split()[-1])
        assert grown < 1.3 * size, f"{kind}: {grown / size:.2f}"
        print(f"{kind}: {grown / size:.2f} times the weights")
