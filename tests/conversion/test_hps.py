"""The HPS converter: what it writes loads in plain transformers and loses no number; wrong files are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPTokenizer

from egrpo.conversion.checkpoints import ConversionError
from egrpo.conversion.hps import convert, native_names, read_config

NAME = "HPS_v2.1_compressed.pt"
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(shared, tmp_path):
    """A copy of the conformance checkpoint that a test may spoil."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in (NAME, "open_clip_config.json", "vocab.json", "merges.txt"):
        shutil.copyfile(shared / "conformance" / "hps_tiny" / name, folder / name)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / NAME, weights_only=True)["state_dict"]


def spoil(folder: Path, change) -> None:
    state = tensors(folder)
    change(state)
    torch.save({"state_dict": state}, folder / NAME)


def test_plain_transformers_loads_what_is_written(source, tmp_path):
    summary = convert(source, tmp_path / "t")
    model, info = CLIPModel.from_pretrained(tmp_path / "t", output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.float16 and summary.dtype == "float16"
    assert summary.parameters == sum(t.numel() for t in tensors(source).values())
    assert (tmp_path / "t" / "model.safetensors").stat().st_size < 2 * summary.parameters + 20_000  # nothing twice
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer.model_max_length == 77 and len(tokenizer) == 642 == model.config.text_config.vocab_size
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id == 641
    processor = AutoImageProcessor.from_pretrained(tmp_path / "t", backend="pil")
    assert processor.size.shortest_edge == 224


def test_every_tensor_arrives_unchanged(source, tmp_path):
    convert(source / NAME, tmp_path / "t")
    model = CLIPModel.from_pretrained(tmp_path / "t")
    new, names = model.state_dict(), native_names(model.config)
    assert sorted(name for group in names.values() for name in group) == sorted(new)
    for key, tensor in tensors(source).items():
        arrived = torch.cat([new[name] for name in names[key]]) if "in_proj" in key else new[names[key][0]]
        assert torch.equal(arrived, tensor.T if key in ("visual.proj", "text_projection") else tensor), key


def test_without_a_configuration_it_is_a_vit_h_14(tmp_path):
    words = [*(f"w{i}" for i in range(49406)), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    config = read_config(tmp_path / "open_clip_config.json", tokenizer)
    with torch.device("meta"):
        model = CLIPModel(config)
    assert sum(p.numel() for p in model.parameters()) == 986_109_441  # as open_clip counts its ViT-H-14
    assert config.vision_config.num_attention_heads == 16 and config.vision_config.hidden_act == "gelu"
    assert sorted(name for group in native_names(config).values() for name in group) == sorted(model.state_dict())


@pytest.mark.parametrize("kept", [(), ("vocab.json",), ("merges.txt",)])
def test_missing_tokenizer_files_are_named_with_where_to_get_them(tmp_path, kept):
    torch.save({"state_dict": {}}, tmp_path / NAME)
    for name in kept:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConversionError, match="openai/clip-vit-large-patch14") as error:
        convert(tmp_path / NAME, tmp_path / "t")
    lacks = str(error.value).split(":")[0]
    assert [name in lacks for name in ("vocab.json", "merges.txt")] == [
        n not in kept for n in ("vocab.json", "merges.txt")
    ]
    assert "vocab.json and merges.txt" in str(error.value) and "egrpo.download what=rewards" in str(error.value)


def test_missing_and_surplus_keys_are_named(source, tmp_path):
    def change(state):
        del state["visual.ln_pre.bias"]
        state["visual.head.weight"] = torch.zeros(1)

    spoil(source, change)
    with pytest.raises(ConversionError, match=r"missing \(visual\.ln_pre\.bias\).*surplus \(visual\.head\.weight\)"):
        convert(source, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "key, native",
    [
        ("visual.proj", "visual_projection.weight"),
        ("transformer.resblocks.1.attn.in_proj_weight", "text_model.encoder.layers.1.self_attn.q_proj.weight"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_wrong_shapes_are_named(source, tmp_path, key, native):
    spoil(source, lambda state: state.update({key: torch.zeros(7)}))
    with pytest.raises(ConversionError, match=f"does not fit its configuration: .*{native} is "):
        convert(source, tmp_path / "t")


def test_another_layer_count_is_named(source, tmp_path):
    config = json.loads((source / "open_clip_config.json").read_text())
    config["text_cfg"]["layers"] = 2
    (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))  # as nested on the Hub
    with pytest.raises(ConversionError, match=r"12 keys surplus \(transformer\.resblocks\.2"):
        convert(source, tmp_path / "t")


def test_a_configuration_without_a_number_is_named(source, tmp_path):
    (source / "open_clip_config.json").write_text('{"embed_dim": 32, "vision_cfg": {"width": 64}, "text_cfg": {}}')
    with pytest.raises(ConversionError, match="has no 'image_size'"):
        convert(source, tmp_path / "t")


def test_a_vocabulary_of_another_model_is_named(source, tmp_path):
    vocab = json.loads((source / "vocab.json").read_text())
    (source / "vocab.json").write_text(json.dumps({**vocab, "more": 642}))
    with pytest.raises(ConversionError, match="no vocabulary of CLIP"):
        convert(source, tmp_path / "t")
    swapped = {**vocab, "more": vocab["<|endoftext|>"], "<|endoftext|>": 642}
    (source / "vocab.json").write_text(json.dumps(swapped))
    with pytest.raises(ConversionError, match="has 643 entries, the model's vocabulary 642"):
        convert(source, tmp_path / "t")
    (source / "vocab.json").write_text('{"a": "b"}')
    with pytest.raises(ConversionError, match="no tokenizer of CLIP"):
        convert(source, tmp_path / "t")


def test_the_command_converts(source, tmp_path):
    command = [sys.executable, "-m", "egrpo.convert", "kind=hps", f"source={source}", f"target={tmp_path / 't'}"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert f"hps: 110 tensors, 327,361 parameters, float16 -> {tmp_path / 't'}" in done.stdout
    assert CLIPModel.from_pretrained(tmp_path / "t").config.projection_dim == 32
