"""A rank that fails ends the job; with restarts the job goes on from its last checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.distributed.ranks import torchrun
from tests.training.pieces import metrics

STEPS = ("trainer.max_steps=4", "callbacks.checkpoint.every_n_train_steps=2", "trainer.limit_val_batches=0")


def command(runs, folder: Path, strategy: str, killed: bool) -> list[str]:
    fault = f"+callbacks.fault={{_target_: tests.distributed.pieces.Fault, step: 3, killed: {killed}}}"
    words = [word for word in runs.overrides(folder, *STEPS, fault) if not word.startswith("run_dir=")]
    more = [f"strategy={strategy}", "trainer.devices=2", "trainer.precision=32-true", f"hydra.run.dir={folder}"]
    return ["-m", "egrpo.train", *words, "callbacks.best=null", *more]


@pytest.mark.parametrize(
    "strategy, killed",
    [
        ("ddp", False),
        *[pytest.param(s, k, marks=pytest.mark.slow) for s, k in [("deepspeed_stage_3", True), ("fsdp2", False)]],
    ],
)
def test_a_failing_rank_ends_all_with_one_error(runs, tmp_path, strategy: str, killed: bool):
    start = time.monotonic()
    status, output = torchrun(command(runs, tmp_path, strategy, killed), timeout=120)
    assert status != 0 and time.monotonic() - start < 60 + 30  # 30 to start
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert errors == ([] if killed else ["error: rank 1 has had enough"]), output[-3000:]
    if killed:
        assert "SIGKILL" in output or "-9" in output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_3"])
def test_a_restarted_job_goes_on_from_its_last_checkpoint(runs, tmp_path, strategy: str):
    status, output = torchrun(command(runs, tmp_path, strategy, True), timeout=180, restarts=1)
    assert status == 0, output[-4000:]
    assert [row["step"] for row in metrics(tmp_path)] == ["1", "2", "3", "4"]
