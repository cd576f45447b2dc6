"""Checkpoint files are read as tensors or refused in one sentence; a saved directory accounts for every key."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from egrpo.conversion.checkpoints import (
    ConversionError,
    check_keys,
    find_file,
    load_state,
    read_json,
    save_converted,
)

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2, dtype=torch.float16)}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == TENSORS.keys() and all(
        torch.equal(state[k], v) and state[k].dtype == v.dtype for k, v in TENSORS.items()
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_pickled_files_are_read(tmp_path, zipped):
    torch.save({"model": TENSORS}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert same(load_state(tmp_path / "x.pth", unwrap=("state_dict", "model")))


def test_safetensors_are_read_and_prefixes_stripped(tmp_path):
    save_file({f"module.{name}": tensor for name, tensor in TENSORS.items()}, tmp_path / "x.safetensors")
    assert same(load_state(tmp_path / "x.safetensors", strip="module."))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_is_refused_and_the_code_not_run(tmp_path, zipped):
    mark = tmp_path / "was run"
    torch.save({**TENSORS, "c": Bomb(mark)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match=r"x\.pt holds other things than tensors"):
        load_state(tmp_path / "x.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ConversionError, match=r"plain\.bin"):
        load_state(tmp_path / "plain.bin")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut off"])
def test_files_that_are_no_checkpoints_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=name):
        load_state(tmp_path / name)


def test_a_cut_download_is_named(tmp_path):
    torch.save(TENSORS, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"cut\.pt"):
        load_state(tmp_path / "cut.pt")


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)]])
def test_other_content_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match="no mapping of names to tensors"):
        load_state(tmp_path / "x.pt")


def test_files_are_found_in_order_of_the_patterns(tmp_path):
    for name in ("z.pt", "a.pt", "official.pt"):
        (tmp_path / name).touch()
    assert find_file(tmp_path, ("official.pt", "*.pt")).name == "official.pt"
    assert find_file(tmp_path, ("other.pt", "*.pt")).name == "a.pt"
    assert find_file(tmp_path / "z.pt", ("official.pt",)).name == "z.pt"
    with pytest.raises(ConversionError, match=r"none of other\.pt"):
        find_file(tmp_path, ("other.pt",))
    with pytest.raises(ConversionError, match="does not exist"):
        find_file(tmp_path / "nowhere", ("*",))


def test_json_must_be_an_object(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ConversionError, match="is missing"):
        read_json(path)
    for text, fault in (("[1]", "not a list"), ("{", "no JSON")):
        path.write_text(text)
        with pytest.raises(ConversionError, match=fault):
            read_json(path)


def test_keys_are_named_and_long_lists_cut():
    check_keys(iter("ab"), "ba", Path("x"))
    with pytest.raises(ConversionError, match=r"1 keys missing \(c\); 2 keys surplus \(a, b\)"):
        check_keys("abd", "cd", Path("x"))
    with pytest.raises(ConversionError, match=r"20 keys missing \(k00, .*k07, and 12 more\); no keys surplus"):
        check_keys([], [f"k{i:02}" for i in range(20)], Path("x"))


def tiny_text_model() -> CLIPTextModel:
    sizes = {"vocab_size": 5, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    ids = {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 0}
    return CLIPTextModel(CLIPTextConfig(**sizes, **ids, num_attention_heads=1, max_position_embeddings=3))


def test_a_filled_model_is_saved_in_the_dtype_of_the_file(tmp_path):
    state = {name: tensor.to(torch.bfloat16) for name, tensor in tiny_text_model().state_dict().items()}
    with torch.device("meta"):
        model = tiny_text_model()
    summary = save_converted("text", model, state, Path("x.pt"), tmp_path / "new" / "folder")
    loaded = CLIPTextModel.from_pretrained(tmp_path / "new" / "folder")
    assert summary.tensors == len(state) and summary.parameters == sum(t.numel() for t in state.values())
    assert summary.dtype == "bfloat16" and loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_wrong_names_and_shapes_are_named_and_nothing_is_written(tmp_path):
    state = tiny_text_model().state_dict()
    wrong = {**state, "final_layer_norm.bias": torch.zeros(5)}
    with pytest.raises(ConversionError, match=r"final_layer_norm\.bias is \(5,\), wanted \(4,\)"):
        save_converted("text", tiny_text_model(), wrong, Path("x.pt"), tmp_path / "t")
    with pytest.raises(ConversionError, match=r"1 keys surplus \(extra\)"):
        save_converted("text", tiny_text_model(), {**state, "extra": torch.zeros(1)}, Path("x.pt"), tmp_path / "t")
    assert not (tmp_path / "t").exists()
