"""The ORM converter: every key of the original format lands where transformers wants it, or the error names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, Qwen2Tokenizer

from egrpo.conversion.checkpoints import ConversionError, load_sharded
from egrpo.conversion.orm import SIGLIP_SO400M, TOWER, convert
from egrpo.rewards.orm import ORMReward
from egrpo.types import PromptRecord
from tests.conversion.shards import shard

REPO = Path(__file__).resolve().parents[2]
IMAGE_ID = 473  # the first that the tokenizer leaves free
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "tiny_dims.json")


@pytest.fixture(scope="session")
def source(shared: Path) -> Path:
    return shared / "conformance" / "orm_tiny"


@pytest.fixture(scope="session")
def stored(source: Path) -> dict[str, Tensor]:
    return load_file(source / "model.safetensors")


@pytest.fixture(scope="session")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("orm")
    convert(source, target)
    return target


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The source folder without its weights, to be changed."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def write(folder: Path, state: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_plain_transformers_loads_the_directory(converted: Path, source: Path) -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration" and model.dtype == torch.float32
    config = model.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    assert (config.vision_config.num_hidden_layers, config.vision_config.vision_use_head) == (2, False)
    assert (
        config.image_token_id == AutoTokenizer.from_pretrained(converted).convert_tokens_to_ids("<image>") == IMAGE_ID
    )
    assert not config.tie_word_embeddings and config.text_config.vocab_size == 512
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    processor = AutoImageProcessor.from_pretrained(converted, backend="pil")
    assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 3
    assert processor.size["height"] == processor.size["width"] == 384
    original = (source / "generation_config.json").read_bytes()
    assert (converted / "generation_config.json").read_bytes() == original


def test_every_stored_tensor_arrives_once_and_unchanged(converted: Path, stored: dict[str, Tensor]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(converted)
    arrived = list(model.state_dict().items())
    assert len(arrived) == len(stored)
    for name, tensor in stored.items():
        twins = [other for other, value in arrived if value.shape == tensor.shape and torch.equal(value, tensor)]
        if tensor.std() > 0:  # not the zero biases and one scales, which are alike
            assert len(twins) == 1 and twins[0].split(".")[-1] == name.split(".")[-1], name


def test_types_stay_as_stored(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    write(copy, {name: tensor.bfloat16() for name, tensor in stored.items()})
    assert convert(copy, tmp_path / "target").dtype == "bfloat16"
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "target", dtype="auto").dtype == torch.bfloat16


def test_settings_of_the_language_model_arrive(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    changes = {"rms_norm_eps": 1e-5, "max_position_embeddings": 1234, "rope_theta": 5e5, "attention_dropout": 0.25}
    edit(copy / "config.json", rope_scaling={"rope_type": "linear", "factor": 2.0}, **changes)
    write(copy, stored)
    convert(copy, tmp_path / "target")
    text = AutoModelForImageTextToText.from_pretrained(tmp_path / "target").config.text_config
    assert text.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": changes.pop("rope_theta")}
    assert {name: getattr(text, name) for name in changes} == changes


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_give_the_same_directory(
    suffix: str, copy: Path, stored: dict[str, Tensor], converted: Path, tmp_path: Path
) -> None:
    shard(copy, stored, suffix)
    convert(copy, tmp_path / "target")
    names = sorted(path.name for path in converted.iterdir())
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == names
    assert all((tmp_path / "target" / name).read_bytes() == (converted / name).read_bytes() for name in names)


def test_incomplete_shards_are_named(copy: Path, stored: dict[str, Tensor]) -> None:
    shard(copy, stored, "safetensors")
    shutil.copy(copy / "model-00001-of-00003.safetensors", copy / "model-00002-of-00003.safetensors")
    with pytest.raises(ConversionError, match=r"model-00002-of-00003\.safetensors repeats \d+ keys of earlier shards"):
        load_sharded(copy)
    (copy / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"names model-00002-of-00003\.safetensors, not there"):
        load_sharded(copy)
    (copy / "model.safetensors.index.json").unlink()
    with pytest.raises(ConversionError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        load_sharded(copy)


def test_missing_and_surplus_keys_bear_their_original_names(
    copy: Path, stored: dict[str, Tensor], tmp_path: Path
) -> None:
    gone, foreign = TOWER + "encoder.layers.1.mlp.fc1.bias", ["model.mm_projector.4.bias", "vision_resampler.query"]
    write(copy, {name: t for name, t in stored.items() if name != gone} | {name: torch.zeros(1) for name in foreign})
    with pytest.raises(ConversionError) as failure:
        convert(copy, tmp_path / "target")
    assert f"1 keys missing ({gone})" in str(failure.value)
    assert f"2 keys surplus ({', '.join(foreign)})" in str(failure.value)
    assert not (tmp_path / "target").exists()


def test_the_unused_pooling_head_alone_is_left_out(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    write(copy, stored | {TOWER + "head.probe": torch.zeros(1, 1, 32)})
    assert convert(copy, tmp_path / "target").tensors == len(stored)


def test_without_dimensions_the_tower_is_siglip_so400m(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    (copy / "tiny_dims.json").unlink()
    write(copy, stored)
    with pytest.raises(ConversionError, match=rf"{24 * 16} keys missing .*encoder\.layers\.10\."):
        convert(copy, tmp_path / "target")
    assert SIGLIP_SO400M["hidden_size"] == 1152 and SIGLIP_SO400M["num_hidden_layers"] == 26


def test_wrong_sources_are_refused(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(copy, stored | {"model.norm.weight": torch.zeros(65)})
    with pytest.raises(ConversionError, match=r"language_model\.norm\.weight is \(65,\), wanted \(64,\)"):
        convert(copy, target)
    write(copy, stored)
    edit(copy / "config.json", mm_projector_type="linear")
    with pytest.raises(ConversionError, match="mm_projector_type='linear', wanted 'mlp2x_gelu'"):
        convert(copy, target)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match=r"none of tokenizer\.json, vocab\.json"):
        convert(copy, target)
    (copy / "config.json").unlink()
    with pytest.raises(ConversionError, match=r"config\.json is missing"):
        convert(copy, target)


def test_tied_embeddings(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    edit(copy / "config.json", tie_word_embeddings=True)
    write(copy, stored)
    with pytest.raises(ConversionError, match="an lm_head other than its embedding"):
        convert(copy, tmp_path / "target")
    write(copy, {name: tensor for name, tensor in stored.items() if name != "lm_head.weight"})
    convert(copy, tmp_path / "target")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "target")
    assert model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, stored["model.embed_tokens.weight"])


def test_an_image_token_without_room_grows_the_vocabulary(
    copy: Path, stored: dict[str, Tensor], converted: Path, tmp_path: Path
) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    write(copy, stored | {name: stored[name][:IMAGE_ID] for name in names})
    edit(copy / "config.json", vocab_size=IMAGE_ID)
    convert(copy, tmp_path / "target")
    small, wide = ORMReward(tmp_path / "target"), ORMReward(converted)
    picture, record = Image.new("RGB", (60, 40), (200, 30, 90)), PromptRecord("a red cup")
    assert torch.equal(small([picture], [record]), wide([picture], [record]))


def test_an_image_token_that_exists_is_taken(copy: Path, stored: dict[str, Tensor], tmp_path: Path) -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained(copy)
    tokenizer.add_tokens([AddedToken("<image>", special=False), AddedToken("<video>", special=True)])
    tokenizer.save_pretrained(copy)
    write(copy, stored)
    convert(copy, tmp_path / "target")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "target")) == IMAGE_ID + 2
    reward = ORMReward(tmp_path / "target")
    assert reward.question_ids("a <image> b").count(IMAGE_ID) == 730


def test_the_command(source: Path, converted: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "egrpo.convert", "kind=orm", f"source={source}", f"target={tmp_path / 'target'}"],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"orm: 69 tensors, 205,504 parameters, float32 -> {tmp_path / 'target'}" in done.stdout
    weights = "model.safetensors"
    assert (tmp_path / "target" / weights).read_bytes() == (converted / weights).read_bytes()
