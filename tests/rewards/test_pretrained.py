"""Loading reward models: where the weights go, and what memory of its own a process pays for them."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from egrpo.rewards.placement import Placement
from egrpo.rewards.pretrained import load_model

MEBI = 2**20


def private_megabytes() -> float:
    """Memory that this process shares with no other and that no file backs."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text model of some 128 MiB in bfloat16."""
    target = tmp_path_factory.mktemp("clip_text")
    config = CLIPTextConfig(
        vocab_size=1 << 20, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        model = CLIPTextModel(config).bfloat16()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # what was in memory may hold NaN
    model.save_pretrained(target)
    return target


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
@pytest.mark.parametrize("dtype, copies", [("bfloat16", 0), ("float32", 2)])
def test_weights_stay_pages_of_their_file_unless_their_type_changes(folder, dtype, copies):
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / MEBI
    assert size > 120
    before = private_megabytes()
    place = Placement(load_model(CLIPTextModel, folder, "hps", offload=True), "cpu", dtype, offload=True)
    used = private_megabytes() - before
    assert place.model.dtype == getattr(torch, dtype)
    assert (copies - 0.25) * size < used < (copies + 0.25) * size


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_an_offloaded_model_costs_no_memory_of_its_own_after_its_use(folder):
    place = Placement(load_model(CLIPTextModel, folder, "hps", "meta", offload=True), "meta", "bfloat16", offload=True)
    before = private_megabytes()
    for _ in range(2):
        with place() as model:
            assert all(parameter.is_meta for parameter in model.parameters())
    assert private_megabytes() - before < 20
    weights = place.model.get_input_embeddings().weight
    assert weights.device.type == "cpu" and weights[-1].float().shape == (64,)


@pytest.mark.parametrize("offload, wanted", [(False, {"device_map": {"": torch.device("cuda", 1)}}), (True, {})])
def test_weights_go_straight_to_the_gpu_that_computes(monkeypatch, tmp_path, offload, wanted):
    asked, model = {}, torch.nn.Linear(1, 1)

    def from_pretrained(path, *, local_files_only, output_loading_info, **settings):
        asked.update(settings)
        return model, {"missing_keys": []}

    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    kind = SimpleNamespace(config_class=SimpleNamespace(model_type="clip"), from_pretrained=from_pretrained)
    assert load_model(kind, tmp_path, "hps", "cuda:1", offload) is model and asked == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_process_keeps_no_copy(folder):
    torch.zeros(1, device="cuda")  # the driver's own memory
    before = private_megabytes()
    model = load_model(CLIPTextModel, folder, "hps", "cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert private_megabytes() - before < 100
