"""A callback that watches a metric which does not exist is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from egrpo.base.errors import UserError
from egrpo.training.checks import check_devices
from egrpo.training.monitors import check_monitors

KNOWN = ["val/reward", "val/strict", "val/strict/seen"]


def test_a_misspelt_metric_of_the_validation_is_refused_before_anything_is_measured(runs, tmp_path):
    with pytest.raises(UserError) as caught:
        runs.run(tmp_path, "callbacks.best.monitor=val/rewardd")
    said = str(caught.value)
    assert said.startswith("Kept watches monitor=val/rewardd, which no metric is called; did you mean val/reward?")
    for name in ("val/oracle", "val/strict", "val/reward/brightness", "val/strict/seen", "val/reward/unseen_prompt"):
        assert name in said
    assert not (tmp_path / "checkpoints").exists()


def test_a_misspelt_metric_of_training_is_refused_after_the_first_step(runs, tmp_path):
    more = ["trainer.limit_val_batches=0", "callbacks.best.monitor=train/rewardd", "trainer.max_steps=2"]
    with pytest.raises(
        UserError, match=r"monitor=train/rewardd, which no metric is called; did you mean train/reward\?"
    ):
        runs.run(tmp_path, *more)


def test_known_metrics_and_those_of_others_pass():
    check_monitors([ModelCheckpoint(monitor="val/strict/seen"), EarlyStopping(monitor="val/reward")], KNOWN)
    check_monitors([ModelCheckpoint(monitor="train/kl"), ModelCheckpoint(monitor=None)], KNOWN)
    check_monitors([ModelCheckpoint(monitor="val/benchmark/all"), SimpleNamespace()], KNOWN)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"accelerator": "gpu"}, r"trainer.accelerator=gpu: this machine has none \(it has cpu\); give auto or cpu"),
        ({"accelerator": "cuda"}, r"trainer.accelerator=cuda: this machine has none"),
        ({"accelerator": "quantum"}, "trainer.accelerator=quantum: there is no such accelerator; choose auto, gpu"),
    ],
)
def test_an_accelerator_that_is_not_there_is_refused(settings, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=said):
        check_devices(settings)


@pytest.mark.parametrize("devices", [3, [0, 2]])
def test_more_devices_than_there_are_are_refused(devices, monkeypatch):
    from lightning.pytorch.accelerators import CUDAAccelerator

    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 2))
    with pytest.raises(UserError, match="this machine has 2 of kind cuda"):
        check_devices({"accelerator": "gpu", "devices": devices})
    check_devices({"accelerator": "gpu", "devices": 2})


@pytest.mark.parametrize("settings", [{"accelerator": "auto"}, {"accelerator": "cpu", "devices": 8}, {}])
def test_what_is_there_is_taken(settings):
    check_devices(settings)
