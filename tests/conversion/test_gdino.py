"""The GroundingDINO converter against a tiny checkpoint in the official format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection

from egrpo.base.targets import MARK
from egrpo.conversion.checkpoints import ConversionError
from egrpo.conversion.gdino import DROPPED, FILE, UNUSED, convert, origin, read_config

REPO = Path(__file__).resolve().parents[2]
ABSENT = object()


@pytest.fixture(scope="session")
def source(shared: Path) -> Path:
    return shared / "conformance" / "gdino_tiny"


@pytest.fixture(scope="session")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gdino")
    convert(source, target)
    return target


@pytest.fixture
def state(source: Path) -> dict[str, torch.Tensor]:
    return torch.load(source / FILE, weights_only=True)["model"]


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """A folder whose files are links to those of `source`, to be replaced one by one."""
    (tmp_path / "source" / "bert-base-uncased").mkdir(parents=True)
    for file in source.rglob("*.*"):
        link = tmp_path / "source" / file.relative_to(source)
        if link.parent.is_dir() and file.is_file():
            link.symlink_to(file)
    return tmp_path / "source"


def replace(path: Path, content: str) -> None:
    path.unlink()
    path.write_text(content)


def save(state: dict[str, torch.Tensor], folder: Path) -> None:
    (folder / FILE).unlink()
    torch.save({"model": state}, folder / FILE)


def test_plain_transformers_loads_it_and_gives_the_official_values(source: Path, converted: Path) -> None:
    expected = load_file(source / "expected.safetensors")
    model, info = GroundingDinoForObjectDetection.from_pretrained(
        converted, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(converted)
    captions = json.loads((source / "inputs_and_rewards.json").read_text())["captions"]
    for j, caption in enumerate(captions):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        assert torch.equal(ids[0], expected[f"caption.{j}.input_ids"])
        for i, pixels in enumerate(expected["small.pixel_values"]):
            with torch.inference_mode():
                output = model.eval()(pixel_values=pixels[None], input_ids=ids)
            logits, boxes = expected[f"small.{i}.{j}.pred_logits"], expected[f"small.{i}.{j}.pred_boxes"]
            assert_close(output.logits[0, :, : ids.shape[1]], logits, atol=1e-3, rtol=0)
            assert_close(output.pred_boxes[0], boxes, atol=1e-4, rtol=0)


def test_the_image_processor_has_the_published_size(converted: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(converted, backend="pil")
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}


def test_weights_keep_their_dtype_and_tied_heads_are_stored_once(source: Path, converted: Path) -> None:
    stored = load_file(converted / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    heads = {name for name in stored if "bbox_embed" in name and "encoder_output" not in name}
    assert heads == {f"bbox_embed.0.layers.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")}


def test_without_a_config_the_sizes_are_those_of_the_official_checkpoint(tmp_path: Path) -> None:
    config = read_config(tmp_path)
    assert config.to_dict() == GroundingDinoConfig(disable_custom_kernels=True).to_dict()
    with torch.device("meta"):
        model = GroundingDinoForObjectDetection(config)
    sources = [origin(name) for name in model.state_dict() if not name.startswith(UNUSED)]
    assert len(set(sources)) == len(sources), "two native tensors have one origin"
    # 172,249,090 parameters is what the published conversion has; it leaves the unused norm out.
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith(UNUSED)) == 172_249_090


def test_decoder_norms_go_where_the_official_code_uses_them() -> None:
    layer = "model.decoder.layers.3."
    assert origin(layer + "encoder_attn_layer_norm.weight") == ("transformer.decoder.layers.3.norm1.weight", None)
    assert origin(layer + "self_attn_layer_norm.weight") == ("transformer.decoder.layers.3.norm2.weight", None)


def test_names_missing_and_surplus_keys(copy: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["module.transformer.extra"] = state.pop("module.feat_map.bias")
    save(state, copy)
    with pytest.raises(
        ConversionError, match=r"1 keys missing \(feat_map.bias\); 1 keys surplus \(transformer.extra\)"
    ):
        convert(copy, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_drops_what_the_official_file_has_beyond_the_model(
    copy: Path, converted: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert sum(name.endswith("relative_position_index") for name in state) == 8
    state["module.label_enc.weight"] = torch.zeros(3, 256)
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    save({name.removeprefix("module."): tensor for name, tensor in state.items()}, copy)  # also comes without prefix
    convert(copy, tmp_path / "target")
    before, after = (load_file(folder / "model.safetensors") for folder in (converted, tmp_path / "target"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert len(DROPPED) == 4


def test_refuses_box_heads_that_differ(copy: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["module.transformer.decoder.bbox_embed.1.layers.2.bias"] += 1
    save(state, copy)
    with pytest.raises(ConversionError, match=r"transformer.decoder.bbox_embed.1.layers.2.bias differs"):
        convert(copy, tmp_path / "target")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_dim": 128}, "hidden_dim is 128, but only 256"),
        ({"nheads": ABSENT}, "lacks nheads"),
        ({"enc_layers": 3}, "keys missing"),
        ({"dim_feedforward": 128}, "does not fit its configuration"),
    ],
)
def test_says_which_setting_is_wrong(copy: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    settings = json.loads((copy / "config.json").read_text()) | change
    replace(copy / "config.json", json.dumps({name: value for name, value in settings.items() if value is not ABSENT}))
    with pytest.raises(ConversionError, match=message):
        convert(copy, tmp_path / "target")


def test_says_where_the_tokenizer_comes_from(source: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to(source / FILE)
    with pytest.raises(ConversionError, match=r"google-bert/bert-base-uncased .* egrpo.download what=rewards"):
        convert(tmp_path / FILE, tmp_path / "target")


def test_refuses_a_tokenizer_with_other_delimiters(copy: Path, tmp_path: Path) -> None:
    tokenizer = (copy / "bert-base-uncased" / "tokenizer.json").read_text()
    swapped = json.loads(tokenizer)
    vocabulary = swapped["model"]["vocab"]
    vocabulary["."], vocabulary["?"] = vocabulary["?"], vocabulary["."]
    replace(copy / "bert-base-uncased" / "tokenizer.json", json.dumps(swapped))
    (copy / "bert-base-uncased" / "vocab.txt").unlink()
    with pytest.raises(ConversionError, match=r"'\.': 1029"):
        convert(copy, tmp_path / "target")


def test_the_command_prints_one_line(source: Path, converted: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "egrpo.convert", "kind=gdino", f"source={source}", f"target={tmp_path / 'target'}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"], capture_output=True, text=True, cwd=REPO, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"gdino: 426 tensors, 4,104,798 parameters, float16 -> {tmp_path / 'target'}" in done.stdout
    left = {path.name for path in (tmp_path / "target").iterdir()}
    assert left == {MARK} | {path.name for path in converted.iterdir()}
