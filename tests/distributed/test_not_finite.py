"""A gradient that is not finite on one rank stops all of them before the step, with one sentence."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.distributed.ranks import REPO, environment

STEPS = ("trainer.max_steps=3", "trainer.limit_val_batches=0", "objective.micro_batch_size=1", "callbacks.best=null")
SLOW = [
    *[(name, "32-true") for name in ("fsdp2", "deepspeed_stage_2", "deepspeed_stage_3", "deepspeed_stage_3_offload")],
    *[(name, "bf16-true") for name in ("fsdp2", "deepspeed_stage_2", "deepspeed_stage_3")],
]


@pytest.mark.parametrize(
    "strategy, precision", [("ddp", "32-true"), *[pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW]]
)
def test_all_ranks_stop_before_the_step(runs, tmp_path, strategy: str, precision: str):
    seen = tmp_path / "seen.json"
    fault = f"+callbacks.fault={{_target_: tests.distributed.pieces.NotFinite, step: 1, file: {seen}}}"
    words = [word for word in runs.overrides(tmp_path, *STEPS, fault) if not word.startswith("run_dir=")]
    more = [f"strategy={strategy}", "trainer.devices=2", f"trainer.precision={precision}", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "egrpo.train", *words, *more],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert len(errors) == 1 and errors[0].startswith("error: the gradient norm is "), done.stderr[-4000:]
    assert "at step 1, and the step was not taken" in errors[0]
    assert json.loads(seen.read_text()) == {"error": "TrainingError", "unchanged": True}
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
