"""Native Janus directories back in the original format: every bit returns; what was never there is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, JanusForConditionalGeneration

from egrpo.conversion import janus, janus_original
from egrpo.conversion.checkpoints import ConversionError
from egrpo.conversion.janus_names import (
    CODEBOOK,
    UNUSED,
    unused_zeros,
)
from tests.conversion.janus_pieces import NATIVE_CODEBOOK, SHAPES, same, same_files, write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_nothing_changes(
    dtype: torch.dtype, janus_copy: Path, janus_stored: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in janus_stored.items()}
    write(janus_copy, state)
    summary = janus.convert(janus_copy, tmp_path / "native")
    assert summary.dtype == str(dtype).removeprefix("torch.")
    assert JanusForConditionalGeneration.from_pretrained(tmp_path / "native", dtype="auto").dtype == dtype
    janus_original.convert(tmp_path / "native", tmp_path / "back")
    assert same(load_file(tmp_path / "back/model.safetensors"), state)
    assert same_files(janus_copy, tmp_path / "back", but=("model.safetensors",))


def test_the_unused_tensors_may_be_absent(janus_copy: Path, janus_stored: dict[str, Tensor], tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in janus_stored.items() if name not in UNUSED}
    write(janus_copy, state)
    janus.convert(janus_copy, tmp_path / "native")
    janus_original.convert(tmp_path / "native", tmp_path / "back")
    assert same(load_file(tmp_path / "back/model.safetensors"), state)


def test_wrong_folders_are_refused(janus_source: Path, janus_converted: Path, janus_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="is no folder"):
        janus.convert(janus_source / "model.safetensors", tmp_path / "target")
    with pytest.raises(ConversionError, match="would be overwritten"):
        janus_original.convert(janus_converted, janus_converted)
    with pytest.raises(ConversionError, match=r"in the original format already"):
        janus_original.convert(janus_source, tmp_path / "target")
    with pytest.raises(ConversionError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        janus.convert(janus_copy, tmp_path / "target")
    (janus_copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConversionError, match="cannot be read"):
        janus.convert(janus_copy, tmp_path / "target")
    (janus_copy / "tiny_dims.json").unlink()  # then it must be the official size
    with pytest.raises(
        ConversionError, match="model_name='siglip_tiny_patch16_128', wanted 'siglip_large_patch16_384'"
    ):
        janus.convert(janus_copy, tmp_path / "target")


def test_an_export_takes_from_its_base(janus_converted: Path, janus_stored: dict[str, Tensor], tmp_path: Path) -> None:
    model = JanusForConditionalGeneration.from_pretrained(janus_converted)
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(tmp_path / "export")
    janus_original.convert(tmp_path / "export", tmp_path / "back", base=janus_converted)
    back = load_file(tmp_path / "back/model.safetensors")
    head = "language_model.lm_head.weight"
    assert same(back, janus_stored | {head: janus_stored[head] + 1})
    with pytest.raises(ConversionError, match=r"give a directory that kind=janus wrote"):
        janus_original.convert(tmp_path / "export", tmp_path / "again", base=SHAPES)
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight[0] = 2.0
    model.save_pretrained(tmp_path / "export")
    summary = janus_original.convert(tmp_path / "export", tmp_path / "back", base=janus_converted)
    assert "codebook is not that of the original" in str(summary)
    assert load_file(tmp_path / "back/model.safetensors")[CODEBOOK][0].tolist() == [2.0] * 8


def test_a_base_of_other_sizes_is_refused(janus_converted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="belongs to a model of other sizes"):
        janus_original.convert(SHAPES, tmp_path / "back", base=janus_converted)


def test_zeros_stand_for_what_was_never_there(janus_stored: dict[str, Tensor]) -> None:
    zeros = unused_zeros(32, 64, torch.float32)
    assert {n: t.shape for n, t in zeros.items()} == {n: t.shape for n, t in janus_stored.items() if n in UNUSED}
    assert len(UNUSED) == 14 and not any(t.any() for t in zeros.values())


def test_the_shapes_model_there_and_back(tmp_path: Path) -> None:
    summary = janus_original.convert(SHAPES, tmp_path / "original")
    assert "zeros" in str(summary) and "tiny_dims.json" in str(summary)
    janus.convert(tmp_path / "original", tmp_path / "native")
    before, after = (load_file(folder / "model.safetensors") for folder in (SHAPES, tmp_path / "native"))
    book = before.pop(NATIVE_CODEBOOK)
    torch.testing.assert_close(after.pop(NATIVE_CODEBOOK), book, atol=1e-6, rtol=0)  # normalised twice
    assert same(before, after)
    a, b = (AutoProcessor.from_pretrained(folder) for folder in (SHAPES, tmp_path / "native"))
    text = "User: a red circle.\n\nAssistant:<begin_of_image>"
    assert a.tokenizer(text)["input_ids"] == b.tokenizer(text)["input_ids"]
    assert a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
    assert a.image_processor.to_dict() == b.image_processor.to_dict() and a.num_image_tokens == b.num_image_tokens
    config = json.loads((tmp_path / "native/config.json").read_text())
    assert config == json.loads((SHAPES / "config.json").read_text())


def test_a_tokenizer_without_an_image_processor_is_enough(tmp_path: Path) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    native.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (native / name).write_bytes((SHAPES / name).read_bytes())
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (native / "tokenizer_config.json").write_text(json.dumps(settings))
    janus_original.convert(native, back)
    assert json.loads((back / "tiny_dims.json").read_text())["special_token_ids"]["begin_of_image"] == 4
    assert json.loads((back / "processor_config.json").read_text())["pad_tag"] == "<pad>"
    assert not (back / "preprocessor_config.json").exists()
