"""The shapes world under the paper's four neural rewards: what is logged, and mixes by override, in a sweep too."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from egrpo.paths import config_dir
from egrpo.train import train
from tests.training.pieces import metrics

NAMES = ["hps", "git", "gdino_strict", "orm"]
SMALL = [
    "+experiment=shapes_paper_rewards",
    "+debug=fast",
    "data.val_batch_size=4",
    "model.max_plan_tokens=12",
    "logger=none",
    "baseline_temperatures=[]",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        train(
            compose("train", [*SMALL, f"run_dir={folder}", "+trainer.enable_progress_bar=false", "~callbacks.progress"])
        )
    return folder


def test_each_reward_is_logged_and_the_oracle_beside_them(folder):
    steps = [row for row in metrics(folder) if "train/loss" in row]
    assert len(steps) == 2
    for row in steps:
        parts = [float(row[f"train/reward/{name}"]) for name in NAMES if f"train/reward/{name}" in row]
        assert len(parts) >= 3  # GIT has nothing to say where both prompts of a step are spatial or numeracy
        for name in NAMES:
            assert float(row[f"train/reward_dropped/{name}"]) == 0
            assert 0 <= float(row[f"train/groups_without_signal/{name}"]) <= 1
            assert f"train/reward_std_within_group/{name}" in row
    last = [row for row in metrics(folder) if "val/reward" in row][-1]
    assert {"val/oracle", "val/strict", *(f"val/reward/{name}" for name in NAMES)} <= set(last)
    after = json.loads((folder / "summary.json").read_text())["validation"]["after"]
    assert {"oracle", "strict", "reward", *(f"reward/{name}" for name in NAMES)} <= set(after)


def test_checkpoints_hold_no_reward_model(folder):
    import torch

    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert all(name.startswith("policy.") for name in weights)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_bfloat16_policy_and_bfloat16_rewards_train(tmp_path, precision):
    overrides = [f"trainer.precision={precision}", "model.dtype=bfloat16", "reward_dtype=bfloat16"]
    overrides += ["optimizer=adamw_master", "optimizer.lr=1e-6", "trainer.limit_val_batches=0", "callbacks.best=null"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        train(compose("train", [*SMALL, *overrides, f"run_dir={tmp_path}", "~callbacks.progress"]))
    steps = [row for row in metrics(tmp_path) if "train/loss" in row]
    assert len(steps) == 2 and all(0 < float(row["train/reward"]) < 4 for row in steps)


def test_leave_one_out_and_weights_in_a_sweep(tmp_path):
    command = [sys.executable, "-m", "egrpo.train", "-m", *SMALL, "trainer.max_steps=1", f"hydra.sweep.dir={tmp_path}"]
    command += ["reward=[hps,gdino_strict],[hps,orm]", "reward.hps.weight=0.5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for job, other in (("0", "gdino_strict"), ("1", "orm")):
        with (tmp_path / job / "metrics.csv").open(newline="") as file:
            row = next(row for row in csv.DictReader(file) if row["train/loss"])
        total, hps, rest = (float(row[f"train/reward{part}"]) for part in ("", "/hps", f"/{other}"))
        assert total == pytest.approx(0.5 * hps + rest, rel=1e-4)
        assert sum(name.startswith("train/reward_dropped/") for name in row) == 2
