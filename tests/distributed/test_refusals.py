"""What a divided model, or this machine, cannot do is told in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.ranks import REPO, environment, torchrun

RUN = (
    "-m egrpo.train +experiment=shapes_eg_grpo +debug=fast logger=none trainer.accelerator=cpu trainer.devices=2 "
    "trainer.precision=32-true strategy=deepspeed_stage_3 model/adapter=lora +model.gradient_checkpointing=true "
    "baseline_temperatures=[] trainer.limit_val_batches=0 callbacks.best=null"
)


def plain(runs, folder: Path, *more: str) -> list[str]:
    return [word for word in runs.overrides(folder, *more) if not word.startswith("run_dir=")]


@pytest.mark.slow
def test_an_adapter_with_checkpointing_on_weights_that_deepspeed_divides(tmp_path):
    status, output = torchrun([*RUN.split(), f"hydra.run.dir={tmp_path}"])
    assert status != 0 and "error: model.gradient_checkpointing=true does not go with an adapter" in output
    assert "CheckpointError" not in output


@pytest.mark.slow
def test_a_compiler_that_is_not_there(runs, tmp_path):
    """DeepSpeed's compiled parts are looked for where there are none yet."""
    words = ["-m", "egrpo.train", *plain(runs, tmp_path), f"hydra.run.dir={tmp_path}", "strategy=deepspeed_stage_2"]
    missing = {"CXX": "/nowhere/c++", "TORCH_EXTENSIONS_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [sys.executable, *words, "trainer.devices=2", "trainer.precision=32-true"],
        cwd=REPO,
        env=environment() | missing,
        capture_output=True,
        text=True,
        timeout=180,
    )
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert done.returncode == 1 and len(errors) == 1, done.stderr[-4000:]
    assert "the C++ compiler /nowhere/c++ is not there: install one" in errors[0]
    assert "building extension" in (tmp_path / "error.txt").read_text()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_under_divided_weights(runs, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    steps = ("trainer.max_steps=1", "trainer.limit_val_batches=0", "callbacks.best=null")
    runs.run(first, *steps)
    words = [*plain(runs, other, *steps), f"hydra.run.dir={other}", "model/adapter=lora", "strategy=fsdp2"]
    words += ["trainer.devices=2", "trainer.precision=32-true", f"ckpt_path={first / 'checkpoints' / 'last.ckpt'}"]
    status, output = torchrun(["-m", "egrpo.train", *words])
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(errors) == 1, output[-4000:]
    assert "the checkpoint does not fit this model" in errors[0]
