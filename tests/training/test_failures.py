"""Runs that cannot go on end with one clear sentence, and keep what they have."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from egrpo.entry import is_expected, run
from egrpo.rewards import RewardError
from egrpo.train import train
from egrpo.training import TrainingError
from tests.training.pieces import Poison, metrics, trained_weights

REPO = Path(__file__).resolve().parents[2]


def error_of(code: int, stderr: str) -> str:
    """The one error of a failed command, in words."""
    assert code == 1 and "Traceback" not in stderr, stderr
    lines = stderr.strip().splitlines()
    first = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(first) == 1, stderr
    return " ".join(" ".join(lines[first[0] :]).split())


@pytest.mark.parametrize("early", [True, False], ids=["while composing", "in the run"])
def test_the_command_ends_with_one_sentence(tmp_path, early: bool):
    fault = "entropy_policy=guided" if early else "rollout.group_size=1"
    done = subprocess.run(
        [sys.executable, "-m", "egrpo.train", f"hydra.run.dir={tmp_path}", "logger=none", fault],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    error = error_of(done.returncode, done.stderr)
    if early:
        assert "entropy_policy=guided: there is no such choice; did you mean entropy_guided?" in error
    else:
        assert error.startswith("error: rollout.group_size=1: give a whole number from 2 on")
        assert "Traceback" in (tmp_path / "error.txt").read_text()  # kept for whoever wants it


@pytest.fixture
def fail(runs, prompts, monkeypatch, capfd) -> Iterator[Callable[..., str]]:
    """Runs the command in this process; returns its error."""

    def call(folder: object, *overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train", *runs.tiny, f"hydra.run.dir={folder}", *overrides])
        with pytest.raises(SystemExit) as stop:
            run(train, "train")
        return error_of(stop.value.code, capfd.readouterr().err)

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers, level = logging.root.handlers[:], logging.root.level
    yield call
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["rollout.group_sizes=4"], ["rollout.group_sizes: there is no such setting", "rollout.group_size?"]),
        (["rollout.group_size=many"], ["rollout.group_size=many: give a whole number from 2 on"]),
        (["reward=[shapes_orakel]"], ["reward=shapes_orakel: there is no such choice", "shapes_oracle?"]),
        (["ckpt_path=nowhere/last.ckpt"], ["ckpt_path=nowhere/last.ckpt: there is no such checkpoint"]),
        (["rollout.group_size=1"], ["rollout.group_size=1: give a whole number from 2 on"]),
        (["data.train=nowhere.jsonl"], ["nowhere.jsonl does not exist"]),
        (["model.path=nowhere"], ["no Janus checkpoint at nowhere"]),
        (["reward.brightness.weight=0"], ["gives no signal", "reward.NAME.weight"]),
        (["objective.updates_per_rollout=0"], ["objective.updates_per_rollout=0: give a whole number from 1 on"]),
        (["entropy_policy.high_fraction=0.9"], ["high_fraction 0.9 + low_fraction 0.2 exceeds 1"]),
        (["model.max_plan_tokens=0"], ["model.max_plan_tokens=0: give a whole number from 1 on"]),
    ],
)
def test_mistakes_are_told_in_one_sentence(fail, tmp_path, overrides: list[str], words: list[str]):
    error = fail(tmp_path, *overrides)
    assert all(word in error for word in words), error


def test_a_folder_that_cannot_be_written(fail):
    assert "/proc/nowhere" in fail("/proc/nowhere")


def test_a_bad_line_of_a_prompt_file(fail, prompts, tmp_path):
    lines = (prompts / "train.jsonl").read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([lines[0], lines[1][:-5], '{"nouns": ["cat"]}', lines[2]]))
    error = fail(tmp_path / "run", f"data.train={bad}")
    assert "bad.jsonl" in error and "line 2" in error and "line 3" in error
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_checkpoint_that_is_none(fail, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"no checkpoint")
    error = fail(tmp_path / "run", f"ckpt_path={path}")
    assert str(path) in error


def test_a_reward_that_breaks_in_mid_run(runs, tmp_path):
    """Calls: validation before training, then one a step."""
    more = ("trainer.max_steps=6", "trainer.val_check_interval=100", "callbacks.checkpoint.every_n_train_steps=2")
    with pytest.raises(RewardError, match=r"'brightness' returned nan for 2 of 4 images") as caught:
        runs.run(tmp_path, *more, "+reward.brightness.reward.broken_call=5")
    assert is_expected(caught.value)
    assert [row["step"] for row in metrics(tmp_path)] == ["0", "1", "2", "3"]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 2
    assert not (tmp_path / "summary.json").exists()
    # Once the reward is mended, the run goes on.
    runs.run(tmp_path, *more, f"ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}")
    assert [row["step"] for row in metrics(tmp_path)] == ["0", "1", "2", "3", "4", "5", "6", "6"]


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(runs, tmp_path, what: str):
    module = runs.module(tmp_path)
    kept: list[dict[str, torch.Tensor]] = []
    apply_gradient = module.apply_gradient

    def applied() -> torch.Tensor:
        kept.append(trained_weights(module))
        return apply_gradient()

    module.apply_gradient = applied
    message = {"weight": "step 2: the model's logits hold NaN", "gradient": "gradient norm is (inf|nan) at step 2"}
    with pytest.raises(TrainingError, match=message[what]) as caught:
        runs.fit(tmp_path, "trainer.max_steps=4", module=module, callbacks=[Poison(2, what)])
    assert is_expected(caught.value) and "optimizer.lr" in str(caught.value)
    if what == "weight":
        assert len(kept) == 2
    else:
        assert len(kept) == 3
        assert all(torch.equal(value, kept[2][name]) for name, value in trained_weights(module).items())
