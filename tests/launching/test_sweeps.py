"""Real sweeps: jobs side by side, in processes of their own, and one after another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.ranks import REPO, environment
from tests.training.conftest import Runs, prompts, runs
from tests.training.pieces import metrics

__all__ = ["prompts", "runs"]
STEPS = ("trainer.limit_val_batches=0", "callbacks.best=null")


def sweep(runs: Runs, folder: Path, *more: str) -> tuple[int, list[str]]:
    """Exit status of a sweep and the errors that it told on the terminal."""
    words = [word for word in runs.overrides(folder, *STEPS, *more) if not word.startswith("run_dir=")]
    command = [sys.executable, "-m", "egrpo.train", "-m", *words, f"hydra.sweep.dir={folder}"]
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=240)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr.split("error: ")[-1], done.stderr[-4000:]
    return done.returncode, errors


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in metrics(folder)]


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side_as_each_would_run_alone(runs, tmp_path):
    status, errors = sweep(runs, tmp_path / "sweep", "hydra/launcher=joblib", "seed=0,1")
    assert (status, errors) == (0, [])
    for seed in (0, 1):
        runs.run(tmp_path / f"alone_{seed}", *STEPS, f"seed={seed}")
        job, alone = numbers(tmp_path / "sweep" / str(seed)), numbers(tmp_path / f"alone_{seed}")
        assert [row["step"] for row in job] == [1, 2]
        assert job == [pytest.approx(row, rel=1e-6) for row in alone]
    assert not (tmp_path / "sweep" / "0" / "error.txt").exists()


@pytest.mark.slow
def test_submitit_gives_a_job_two_processes_and_tells_which_job_failed(runs, tmp_path):
    more = ("hydra/launcher=submitit_local", "strategy=ddp", "trainer.devices=2", "rollout.batch_size=0,null")
    status, errors = sweep(runs, tmp_path / "sweep", *more)
    failed, whole = (tmp_path / "sweep" / name for name in ("0", "1"))
    assert status == 1 and len(errors) == 1, errors
    assert errors[0].startswith(f"error: job 0 of the sweep, {failed}: rollout.batch_size=0: give")
    assert not (failed / "metrics.csv").exists()
    logs = [path.read_text() for path in (tmp_path / "sweep" / ".submitit").glob("*/*_log.err")]
    assert sorted(errors[0] in log for log in logs) == [False, True]
    runs.run(tmp_path / "alone", *STEPS)
    assert numbers(whole) == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in numbers(tmp_path / "alone")]


@pytest.mark.slow
def test_after_a_failed_job_the_others_run(runs, tmp_path):
    """An error that nobody foresaw, too, ends its job alone; its traceback lies in the job's folder."""
    fault = "+callbacks.fault={_target_: tests.launching.pieces.Fault, seed: 0}"
    status, errors = sweep(runs, tmp_path, "trainer.max_steps=1", "seed=0,1", fault)
    told = f"error: job 0 of the sweep, {tmp_path}/0: IndexError: seed 0 fails (traceback in {tmp_path}/0/error.txt)"
    assert status == 1 and errors == [told, told]  # when it happens, and again at the end
    assert "in on_train_batch_end" in (tmp_path / "0" / "error.txt").read_text()
    assert [row["step"] for row in metrics(tmp_path / "1")] == ["1"]
