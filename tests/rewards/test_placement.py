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
    model = torch.nn.BatchNorm1d(3)  # parameters, a float buffer and a count

    def where() -> str:
        (device,) = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
        return device

    def failing() -> None:
        with place() as used:
            assert used is model
            moves.append(where())
            raise KeyError("what fails inside leaves the model where it waits")

    place = Placement(model, device="meta", offload=offload)
    moves = [where()]
    with pytest.raises(KeyError):
        failing()
    moves.append(where())
    assert moves == (places if offload else places * 3)


def test_an_offloaded_model_comes_back_without_a_copy():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight  # shared weights stay shared
    model.register_buffer("mean", torch.ones(2))
    place = Placement(model, device="meta", offload=True)
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.state_dict(keep_vars=True).items()}
    with place():
        assert model[0].weight is model[1].weight and model.mean.is_meta and not model[0].weight.requires_grad
    assert {n: (id(t), t.data_ptr()) for n, t in model.state_dict(keep_vars=True).items()} == before
    assert model(torch.ones(1, 2)).isfinite().all()


@pytest.mark.parametrize("precision, product", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_products_and_not_of_weights(precision, product):
    place = Placement(torch.nn.Linear(2, 2), precision=precision)
    with place() as model:
        assert model(torch.ones(1, 2)).dtype == product and model.weight.dtype == torch.float32
    assert model(torch.ones(1, 2)).dtype == torch.float32 and not place.process_wide


def test_tf32_holds_while_the_model_is_used_and_ends_with_an_error():
    def settings() -> list[str]:
        return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]

    def failing() -> None:
        with Placement(torch.nn.Linear(2, 2), precision="tf32")():
            assert settings() == ["tf32", "tf32"]
            raise KeyError("fails inside")

    before, legacy = settings(), torch.get_float32_matmul_precision()
    with pytest.raises(KeyError):
        failing()
    assert settings() == before and torch.get_float32_matmul_precision() == legacy


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"precision": "half"}, "precision='half'.*float32, tf32, bfloat16, float16"),
        ({"precision": "tf32", "dtype": "bfloat16"}, "precision=tf32.*its dtype is bfloat16"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Placement(torch.nn.Linear(2, 2), **settings)


def test_batches_in_any_order_give_scores_in_the_order_of_the_images():
    seen = []

    def score(images, records):
        seen.append([record.prompt for record in records])
        return torch.tensor([image.getpixel((0, 0))[0] for image in images])

    values = in_batches(score, IMAGES, RECORDS, 2, batches=[[3, 0], [4, 1], [2]])
    assert values.tolist() == [0, 1, 2, 3, 4] and seen == [["3", "0"], ["4", "1"], ["2"]]


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
