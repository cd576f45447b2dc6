"""A rank that fails ends the job; with restarts the job goes on from its last checkpoint."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from egrpo import distributed
from egrpo.torchrun import killed as killed_by
from tests.distributed.ranks import REPO, environment, torchrun
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
        pytest.param("ddp", True, marks=pytest.mark.slow),
    ],
)
def test_a_failing_rank_ends_all_with_one_error(runs, tmp_path, strategy: str, killed: bool):
    words = [sys.executable, *command(runs, tmp_path, strategy, killed)]
    start = time.monotonic()
    done = subprocess.run(words, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and time.monotonic() - start < 60 + 30  # 30 to start
    errors = [line for line in done.stderr.splitlines() if "rror" in line or "Traceback" in line]
    expected = "error: rank 1 was ended by SIGKILL, often the" if killed else "error: rank 1 has had enough"
    assert len(errors) == 1 and errors[0].startswith(expected), done.stderr[-3000:]
    assert "torch/distributed/elastic" not in done.stderr  # torchrun's own account of it


def failure(exitcode: int, timestamp: int = 0) -> Any:
    return SimpleNamespace(exitcode=exitcode, timestamp=timestamp)


@pytest.mark.parametrize(
    "failures, ranks",
    [
        ({0: failure(1), 1: failure(-15)}, []),  # rank 0 told, torchrun ended the other
        ({0: failure(1), 1: failure(-9, 30)}, []),  # the other did not heed it in time
        ({0: failure(1, 1), 1: failure(-9)}, ["rank 1 was ended by SIGKILL"]),  # rank 0 saw its peer go
        ({0: failure(-15, 1), 3: failure(-11)}, ["rank 3 was ended by SIGSEGV"]),
        ({2: failure(-6), 3: failure(-9)}, ["rank 2 was ended by SIGABRT", "rank 3 was ended by SIGKILL"]),
        ({0: failure(-15), 1: failure(-15)}, ["rank 0 was ended by SIGTERM", "rank 1 was ended by SIGTERM"]),
    ],
)
def test_what_killed_a_rank_is_told_from_what_followed(failures: dict[int, Any], ranks: list[str]):
    sentence = killed_by(failures)
    assert (sentence or "").count("was ended by") == len(ranks)
    assert all(rank in sentence for rank in ranks) and bool(sentence) == bool(ranks)


def test_ranks_say_one_thing_once_and_none_ends_before(monkeypatch):
    store = torch.distributed.TCPStore("localhost", 0, is_master=True)
    launched = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    for name, value in {**launched, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []

    def say() -> None:
        time.sleep(0.3)
        said.append("said")

    def end(_: int) -> int:
        distributed.say_once(say)
        return len(said)

    with ThreadPoolExecutor(3) as ranks:
        assert list(ranks.map(end, range(3))) == [1, 1, 1]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert end(0) == 2  # another attempt tells its own errors
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert end(0) == 3 and end(0) == 4  # nobody to agree with


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_3"])
def test_a_restarted_job_goes_on_from_its_last_checkpoint(runs, tmp_path, strategy: str):
    status, output = torchrun(command(runs, tmp_path, strategy, True), timeout=180, restarts=1)
    assert status == 0, output[-4000:]
    assert [row["step"] for row in metrics(tmp_path)] == ["1", "2", "3", "4"]
