"""docs/slurm/train.sbatch on two nodes that are this machine: `srun` and `scontrol` are played, all else is real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import REPO, environment, kill_session
from tests.training.conftest import Runs, prompts, runs
from tests.training.pieces import metrics

__all__ = ["prompts", "runs"]
RECIPE = REPO / "docs" / "slurm" / "train.sbatch"
SRUN = """#!/bin/bash
echo "$@" >> "$PLAYED/srun"
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & nodes+=($!); done
status=0
for node in "${nodes[@]}"; do wait "$node" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$PLAYED/scontrol"
if [[ $1 == show ]]; then printf 'localhost\\nlocalhost\\n'; fi
"""


def play(folder: Path) -> dict[str, str]:
    """Puts the played commands into a folder; gives back the environment of a batch script that uses them."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    slurm = {"JOB_ID": str(10000 + os.getpid() % 10000), "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "1"}
    own = {f"SLURM_{name}": value for name, value in slurm.items()} | {"SLURM_JOB_NODELIST": "here[1-2]"}
    path = f"{folder}/bin:{os.environ['PATH']}"
    return environment() | own | {"PATH": path, "PLAYED": str(folder), "PYTHON": sys.executable, "RESTARTS": "1"}


def submit(runs: Runs, folder: Path, given: dict[str, str], *more: str, signalled: bool = False) -> tuple[int, str]:
    """Exit status and output of the recipe, as sbatch would run it."""
    words = [word for word in runs.overrides(folder, *more) if not word.startswith("run_dir=")]
    output = folder.parent / f"{len(list(folder.parent.iterdir()))}.out"
    with output.open("w") as file:
        command = ["bash", str(RECIPE), str(folder), *words, "strategy=ddp", "trainer.limit_val_batches=0"]
        child = subprocess.Popen(
            command, cwd=REPO, env=given, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if signalled:
                while not (folder / "config.yaml").exists() and child.poll() is None:
                    time.sleep(0.2)
                child.send_signal(signal.SIGUSR1)
            status = child.wait(240)
        finally:
            kill_session(child.pid)
            child.wait()
    return status, output.read_text()


@pytest.mark.slow
def test_a_run_on_two_nodes_survives_a_killed_process_its_time_limit_and_a_second_submission(runs, tmp_path):
    folder, given = tmp_path / "run", play(tmp_path / "played")
    steps = ("callbacks.checkpoint.every_n_train_steps=1", "callbacks.best=null")
    fault = "+callbacks.fault={_target_: tests.distributed.pieces.Fault, step: 2, killed: true}"
    status, output = submit(runs, folder, given, *steps, "trainer.max_steps=3", fault, signalled=True)
    assert status == 0, output[-4000:]
    assert [row["step"] for row in metrics(folder)] == ["1", "2", "3"]
    assert (tmp_path / "played" / "scontrol").read_text().splitlines() == [
        "show hostnames here[1-2]",
        f"requeue {given['SLURM_JOB_ID']}",
    ]
    status, output = submit(runs, folder, given, *steps, "trainer.max_steps=4")
    assert status == 0, output[-4000:]
    assert [row["step"] for row in metrics(folder)] == ["1", "2", "3", "4"]
    assert not list(folder.glob("metrics.previous_*"))  # which a start from nothing would leave
    one, two = (tmp_path / "played" / "srun").read_text().split("--ntasks=2 ")[1:]
    assert "ckpt_path" not in one and f"ckpt_path={folder}/checkpoints/last.ckpt" in two


@pytest.mark.slow
def test_the_recipe_fails_as_its_run_fails(runs, tmp_path):
    status, output = submit(runs, tmp_path / "run", play(tmp_path / "played") | {"RESTARTS": "0"}, "threads=x")
    assert status == 1 and "threads" in output, output[-4000:]


def test_the_recipe_tells_what_it_lacks(tmp_path):
    told = subprocess.run(["bash", str(RECIPE)], env=play(tmp_path / "played"), capture_output=True, text=True)
    assert told.returncode != 0 and "give the run's folder" in told.stderr


def test_the_recipe_passes_shellcheck():
    if not (shellcheck := shutil.which("shellcheck")):
        pytest.skip("needs shellcheck")
    checked = subprocess.run([shellcheck, str(RECIPE)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
