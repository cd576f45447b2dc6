from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest
import torch

from tests.training.pieces import RED, metrics

STEPS = (
    "trainer.max_steps=6",
    "trainer.val_check_interval=4",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.entropy.every_n_train_steps=3",  # fading sums are its state
    "normalization=running",  # has a state of its own, which matters where there are two rewards
    RED,
)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without a break: checkpoints after 2, 4 and 6, validations after 0, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    runs.run(folder, *STEPS)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


def killed_run(runs, folder: Path, hook: str, step: int) -> None:
    """A run in a child process, which ends with SIGKILL."""
    killer = f"+callbacks.killer={{_target_: tests.training.pieces.Killer, hook: {hook}, step: {step}}}"
    child = multiprocessing.get_context("fork").Process(target=runs.run, args=(folder, *STEPS, killer))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "hook, step, resumed_step",
    [
        ("on_train_batch_end", 2, 2),  # the checkpoint of this step has just been written, no validation is due
        ("on_validation_batch_start", 4, 2),  # a validation is cut short
        ("on_validation_end", 4, 4),  # the checkpoint of a step with validation has just been written
        ("on_train_batch_end", 5, 4),  # a row was written after the checkpoint
    ],
)
def test_a_killed_and_resumed_run_equals_a_whole_one(runs, whole, tmp_path, hook: str, step: int, resumed_step: int):
    killed_run(runs, tmp_path, hook, step)
    last = tmp_path / "checkpoints" / "last.ckpt"
    found = torch.load(last, weights_only=False)["global_step"]
    resumed = runs.run(tmp_path, *STEPS, f"ckpt_path={last}")
    expected = metrics(whole)
    assert [row["step"] for row in resumed] == ["0", "1", "2", "3", "3", "4", "4", "5", "6", "6", "6"]
    assert resumed == expected
    assert sum("train/loss" in row for row in resumed) == 6 and sum("val/reward" in row for row in resumed) == 3
    for name, value in weights(whole).items():
        assert torch.equal(weights(tmp_path)[name], value), name
    assert sorted(p.name for p in last.parent.iterdir()) == sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert found == resumed_step


def test_a_finished_run_resumed_measures_nothing_twice(runs, whole, tmp_path):
    runs.run(tmp_path, *STEPS)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert runs.run(tmp_path, *STEPS, f"ckpt_path={last}") == metrics(whole)


def test_a_longer_run_goes_on_from_a_finished_one(runs, whole, tmp_path):
    more = ("trainer.max_steps=4", *STEPS[1:])
    runs.run(tmp_path, *more)
    runs.run(tmp_path, *STEPS, f"ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}")
    assert metrics(tmp_path) == metrics(whole)


def test_the_seed_decides_everything(runs, whole, tmp_path):
    again = runs.run(tmp_path / "again", *STEPS)
    assert again == metrics(whole)
    other = runs.run(tmp_path / "other", *STEPS, "seed=1", "data.seed=0")  # the same prompts
    assert [row["step"] for row in other] == [row["step"] for row in again]
    assert all(a["train/reward"] != b["train/reward"] for a, b in zip(again, other) if "train/reward" in a)


def test_steps_count_optimizer_steps_and_resume_with_several_updates_a_rollout(runs, tmp_path):
    several = ("objective.updates_per_rollout=2", "objective.clip_high=0.2", *STEPS[1:], "trainer.val_check_interval=2")
    whole = runs.run(tmp_path / "whole", *several, "trainer.max_steps=6")
    runs.run(tmp_path / "parts", *several, "trainer.max_steps=4")
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    parts = runs.run(tmp_path / "parts", *several, "trainer.max_steps=6", f"ckpt_path={last}")
    assert [row["step"] for row in whole if "train/loss" in row] == ["2", "4", "6"]
    assert parts == whole
