"""`python -m egrpo.train` on two processes leaves what one process leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import REPO, environment, torchrun
from tests.training.pieces import metrics

STEPS = (
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "callbacks.samples.every_n_train_steps=2",
    "callbacks.samples.num_samples=3",
    "entropy_policy=budget_balanced",  # one budget for the whole batch
    "normalization=running",
)


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run by one process and by two, which the command starts itself."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    runs.run(one, *STEPS)
    words = [word for word in runs.overrides(two, *STEPS) if not word.startswith("run_dir=")]
    command = [sys.executable, "-m", "egrpo.train", *words, f"hydra.run.dir={two}", "strategy=ddp", "trainer.devices=2"]
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip().splitlines()[-1] == str(two) and done.stdout.count("steps in") == 1
    return one, two


def test_metrics_are_those_of_the_whole_batch_written_once(folders):
    one, two = (metrics(folder) for folder in folders)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two):
        assert numbers(theirs) == pytest.approx(numbers(ours), rel=1e-4, abs=1e-6)
    assert any("val/reward" in row for row in two) and any("train/bonus_lambda" in row for row in two)


def test_the_summary_counts_every_prompt_once(folders):
    one, two = (json.loads((folder / "summary.json").read_text())["validation"] for folder in folders)

    def flat(node: Any, path: str = "") -> dict[str, float]:
        if isinstance(node, dict):
            return {k: v for key, child in node.items() for k, v in flat(child, f"{path}/{key}").items()}
        if isinstance(node, list):
            return {k: v for i, child in enumerate(node) for k, v in flat(child, f"{path}/{i}").items()}
        return {path: float(node)}

    assert flat(two) == pytest.approx(flat(one), abs=1e-6)
    assert two["before"]["prompts"] == 3


def test_sheets_of_samples_show_the_same_samples(folders):
    one, two = ((folder / "samples" / "step_000002.png").read_bytes() for folder in folders)
    assert one == two


def test_another_number_of_processes_than_devices_is_told():
    status, output = torchrun(["-m", "egrpo.train", "trainer.devices=3", "logger=none"], timeout=60)
    assert status != 0 and "2 processes were launched, but trainer.devices=3" in output
