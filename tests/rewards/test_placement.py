"""Where reward models live, and scoring in batches."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from egrpo.rewards.placement import Placement, in_batches, model_folder, pick_device
from egrpo.types import PromptRecord

IMAGES = [Image.new("RGB", (2, 2), (i, i, i)) for i in range(5)]
RECORDS = [PromptRecord(str(i)) for i in range(5)]


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_batches_keep_the_order(batch_size, sizes):
    seen = []

    def score(images, records):
        seen.append(len(images))
        return torch.tensor([float(record.prompt) for record in records], dtype=torch.float64)

    values = in_batches(score, IMAGES, RECORDS, batch_size)
    assert values.tolist() == [0, 1, 2, 3, 4] and values.dtype == torch.float32 and seen == sizes


def test_nothing_to_score():
    assert in_batches(lambda i, r: torch.zeros(len(i)), [], [], 4).shape == (0,)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        in_batches(lambda i, r: torch.zeros(len(i)), IMAGES, RECORDS, 0)
    with pytest.raises(ValueError, match="5 images and 4 records"):
        in_batches(lambda i, r: torch.zeros(len(i)), IMAGES, RECORDS[:4], 2)
    with pytest.raises(ValueError, match="dtype='int64'"):
        Placement(torch.nn.Linear(2, 2), dtype="int64")


def test_a_model_is_frozen_converted_and_used_without_gradient():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.9)).train()
    place = Placement(model, dtype="bfloat16")
    assert not model.training and all(not p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())
    with place() as used:
        assert used is model and torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


def test_buffers_outside_checkpoints_keep_their_type():
    class Rotary(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)
            self.register_buffer("inv_freq", torch.tensor([1.0, 1 / 3]), persistent=False)
            self.register_buffer("mean", torch.tensor([1 / 3]))

    model = Placement(Rotary(), dtype="bfloat16").model
    assert model.inv_freq.dtype == torch.float32 and model.inv_freq[1] == torch.tensor(1 / 3)
    assert model.mean.dtype == model.linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("offload, places", [(False, ["meta"]), (True, ["cpu", "meta", "cpu"])])
def test_an_offloaded_model_is_on_its_device_only_while_it_is_used(offload, places):
    moves = []

    class Model(torch.nn.Module):
        def to(self, *args, **kwargs):
            moves.append(str(args[0]))
            return self

    def failing() -> None:
        with place():
            assert moves[-1] == "meta"
            raise KeyError("what fails inside leaves the model where it waits")

    place = Placement(Model(), device="meta", offload=offload)
    with pytest.raises(KeyError):
        failing()
    assert moves == places


def test_devices():
    assert pick_device("cpu") == torch.device("cpu") and pick_device("meta") == torch.device("meta")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device, told", [("gpu", "torch knows no such device"), ("cuda:77", "there is no such GPU")])
def test_a_device_that_is_not_there_is_told(device: str, told: str):
    with pytest.raises(ValueError, match=f"device={device}: {told}"):
        pick_device(device)


@pytest.mark.parametrize(
    "variables, index", [({"LOCAL_RANK": "2", "SLURM_LOCALID": "1"}, 2), ({"SLURM_LOCALID": "3"}, 3), ({}, 5)]
)
def test_auto_is_the_accelerator_of_the_local_rank(monkeypatch, variables, index):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    assert pick_device("auto") == torch.device("cuda", index)


def test_a_missing_model_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hps reward.*no config\.json.*egrpo\.download what=rewards"):
        model_folder(tmp_path, "hps")
