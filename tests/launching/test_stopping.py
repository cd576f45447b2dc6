"""Ctrl-C and SIGTERM end a command at any moment with 130 or 143, and say how to resume."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose

from egrpo import launch as launching
from egrpo.base import stopping
from egrpo.base.stopping import Stopped
from egrpo.entry import run
from egrpo.launch import LaunchError, is_whole, resume_training
from egrpo.studies.searching import one_trial, take_up
from egrpo.studies.trials import TrialError, Trials, TrialStoppedError
from egrpo.torchrun import how_to_resume, killed, status_of
from egrpo.train import train
from tests.distributed.ranks import REPO, environment, kill_session, session_of
from tests.training.conftest import Runs, prompts, runs
from tests.training.pieces import metrics

__all__ = ["prompts", "runs"]

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(runs: Runs, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Iterator[Command]:
    """Runs `python -m egrpo.train` in this process; gives its exit status and what it says of its end."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train", *words])
        with pytest.raises(SystemExit) as stop:
            run(train, "train", resume=resume_training)
        return int(stop.value.code or 0), capfd.readouterr().err

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers, level = logging.root.handlers[:], logging.root.level
    yield call
    logging.root.handlers[:], logging.root.level = handlers, level


def ending(call: int, how: str) -> str:
    """The override of a reward that ends its process at one of its calls: 1 is the first validation."""
    reward = f"{{_target_: tests.launching.pieces.Ending, call: {call}, how: {how}}}"
    return f"+reward.ending={{_target_: egrpo.rewards.WeightedReward, weight: 1.0, reward: {reward}}}"


@pytest.mark.parametrize(
    "call, how, status, name",
    [(1, "SIGTERM", 143, "SIGTERM"), (1, "SIGINT", 130, "Ctrl-C"), (3, "SIGTERM", 143, "SIGTERM")],
)
def test_a_signal_ends_a_run_in_validation_as_in_a_step(runs, command, tmp_path, call, how, status, name):
    """The first validation has one batch, after which Lightning would not look for a signal."""
    words = ["callbacks.checkpoint.every_n_train_steps=1", "trainer.val_check_interval=100", "trainer.max_steps=3"]
    code, told = command(*runs.tiny, *words, ending(call, how), f"hydra.run.dir={tmp_path}")
    assert code == status and "Traceback" not in told and "error: " not in told
    sentence = next(line for line in told.splitlines() if line.startswith(f"stopped by {name}: "))
    assert f"hydra.run.dir={tmp_path}" in sentence and not (tmp_path / "summary.json").exists()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.exists() is (call == 3) and (f"ckpt_path={last}" in sentence) is (call == 3)
    assert not (tmp_path / "metrics.csv").exists() or [row["step"] for row in metrics(tmp_path)] == ["0", "1"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was before


def test_a_signal_while_a_model_loads(runs, command, tmp_path):
    code, told = command(
        *runs.tiny, "model._target_=tests.launching.pieces.end_while_loading", f"hydra.run.dir={tmp_path}"
    )
    assert code == 143 and "stopped by SIGTERM: no checkpoint was saved so far" in told


def test_a_reward_that_exits_is_an_error(runs, command, tmp_path):
    code, told = command(*runs.tiny, ending(1, "exit"), f"hydra.run.dir={tmp_path}")
    assert code == 1 and "error: __call__ in " in told and "tests/launching/pieces.py" in told
    assert "called sys.exit(0), which ended the run before it was done" in told
    assert f"(traceback in {tmp_path}/error.txt)" in told and "SystemExit: 0" in (tmp_path / "error.txt").read_text()


def test_an_error_that_is_not_for_the_user_keeps_its_traceback(runs, command, tmp_path):
    """A library's ValueError says nothing to a user, and names no place."""
    fault = "+callbacks.fault={_target_: tests.launching.pieces.LibraryFault}"
    more = ["trainer.limit_val_batches=0", "callbacks.best=null", fault, f"hydra.run.dir={tmp_path}"]
    code, told = command(*runs.tiny, *more)
    kept = (tmp_path / "error.txt").read_text()
    assert code == 1 and "Error executing job" not in told and kept.strip() in told
    assert "in on_train_start" in kept and kept.strip().endswith("ValueError: not enough values to unpack")
    last = told.strip().splitlines()[-1]
    assert last == f"error: ValueError: not enough values to unpack (traceback in {tmp_path}/error.txt)"


def test_a_sentence_names_the_file_with_its_traceback_and_nothing_precedes_it(runs, command, tmp_path):
    code, told = command(*runs.tiny, "rollout.group_size=1", f"hydra.run.dir={tmp_path}")
    assert code == 1 and told.startswith("error: rollout.group_size=1: ") and "Traceback" not in told
    assert told.strip().endswith(f"(traceback in {tmp_path}/error.txt)")
    assert "UserError: rollout.group_size=1" in (tmp_path / "error.txt").read_text()


def test_a_sweep_that_is_stopped_says_that_its_other_jobs_did_not_start(runs, command, tmp_path):
    words = ["-m", *runs.tiny, ending(1, "SIGTERM"), "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    code, told = command(*words)
    assert code == 143 and "other jobs of the sweep were not started: go_on=true hydra.sweep.dir=" in told
    assert not (tmp_path / "1").exists()


def test_a_job_that_exits_fails_its_sweep_and_the_next_one_runs(runs, command, tmp_path):
    more = ["trainer.limit_val_batches=0", "callbacks.best=null", "trainer.max_steps=1", "seed=0,1"]
    words = ["-m", *runs.tiny, *more, ending(1, "exit_of_seed_0"), f"hydra.sweep.dir={tmp_path}"]
    code, told = command(*words)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert code == 1 and f"error: job 0 of the sweep, {tmp_path}/0: " in errors[0] and "called sys.exit(0)" in errors[0]
    assert is_whole(tmp_path / "1") and "Error executing job" not in told


SCRIPT = """
import signal, sys, time
from egrpo.base import stopping
class Loses:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)  # Python ignores what a destructor raises
with stopping.heeded():
    if sys.argv[1] == "lost":
        Loses()
        stopping.check()
    print("waits", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["lost", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_process_with_its_status(how: str):
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    if how != "lost" and child.stdout.readline():
        child.send_signal(getattr(signal, how))
    assert child.wait(20) == {"lost": 143, "SIGTERM": 143, "SIGHUP": 129}[how]


def test_a_command_that_still_imports_says_so():
    words = [sys.executable, "-X", "importtime", "-m", "egrpo.train"]
    child = subprocess.Popen(words, cwd=REPO, stderr=subprocess.PIPE, text=True, env=environment())
    assert child.stderr is not None
    for line in child.stderr:
        if "egrpo.base.stopping" in line:
            break
    time.sleep(0.2)
    child.terminate()
    told = child.stderr.read()
    assert child.wait(20) == 143 and "stopped by SIGTERM before anything was computed" in told


def raised_twice(second: signal.Signals) -> None:
    """Raises a signal's exception, and another signal while it unwinds."""
    with stopping.heeded():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(second)


def test_a_repeated_signal_does_not_disturb_the_end_and_a_later_one_does(monkeypatch):
    with pytest.raises(Stopped) as stop:
        raised_twice(signal.SIGTERM)  # torchrun passes on what the terminal has sent
    assert stop.value.code == 143 and str(stop.value) == "stopped by SIGTERM"
    monkeypatch.setattr(stopping, "REPEATED", 0)
    with pytest.raises(Stopped) as stop:
        raised_twice(signal.SIGINT)
    assert stop.value.code == 130 and pickle.loads(pickle.dumps(stop.value)).code == 130
    stopping.check()  # all is forgotten


def test_lightnings_handler_is_replaced_and_those_of_others_stay():
    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with stopping.heeded():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    with stopping.heeded():
        own = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _HandlersCompose([mine, own]))
        stopping.take_back()
        assert signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_ends_with_its_parent(tmp_path):
    child = (
        "import os, sys, time; from egrpo.base import stopping; stopping.end_with_parent();"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        "own = os.environ | {'EGRPO_PARENT': str(os.getpid())}\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]], env=own)\n"
        "time.sleep(60)"
    )
    note = tmp_path / "pid"
    started = subprocess.Popen([sys.executable, "-c", parent, str(note)], cwd=REPO, start_new_session=True)
    deadline = time.monotonic() + 20
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    while session_of(started.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert session_of(started.pid) == []


def failure(exitcode: int, timestamp: int = 0) -> Any:
    return SimpleNamespace(exitcode=exitcode, timestamp=timestamp)


@pytest.mark.parametrize(
    "failures, status",
    [
        ({0: failure(143), 1: failure(143)}, 143),
        ({0: failure(-15), 1: failure(143)}, 143),
        ({0: failure(130), 1: failure(130)}, 130),
        ({0: failure(1), 1: failure(143)}, 1),  # torchrun ended the other
        ({0: failure(-9), 1: failure(143)}, 1),
    ],
)
def test_the_status_of_a_run_of_several_ranks(failures: dict[int, Any], status: int):
    assert status_of(failures) == status


def test_a_rank_that_heeded_sigterm_is_named_with_how_to_resume(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    resume = how_to_resume(["-m", "egrpo.train", f"hydra.run.dir='{tmp_path}'"])
    told = killed({1: failure(143)}, resume)
    assert told is not None and told.startswith("rank 1 was ended by SIGTERM; resume with ckpt_path=")
    assert f"{tmp_path}/checkpoints/last.ckpt hydra.run.dir={tmp_path}" in told


@pytest.mark.parametrize("content, whole", [(None, False), ("", False), ('{"a": ', False), ("[]", False), ("{}", True)])
def test_a_run_counts_by_its_summary(tmp_path, content: str | None, whole: bool):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert is_whole(tmp_path) is whole


def test_a_job_of_several_processes_counts_by_what_it_left(monkeypatch, tmp_path):
    monkeypatch.setattr(launching, "_run", lambda *_: None)  # exit status 0
    monkeypatch.setattr(launching, "in_sweep", lambda: True)
    monkeypatch.setattr(launching, "_check_sweep", lambda _: None)
    monkeypatch.setattr(launching, "words_of_run", lambda _: [])
    trainer = SimpleNamespace(devices=2, num_nodes=1, accelerator="cpu")
    cfg: Any = SimpleNamespace(trainer=trainer, run_dir=str(tmp_path), threads=1)
    with pytest.raises(LaunchError, match=r"ended without summary\.json"):
        launching.launch(cfg)
    (tmp_path / "summary.json").write_text("{}")
    assert launching.launch(cfg) is True


@pytest.mark.parametrize(
    "script, error, words",
    [
        ("pass", TrialError, "it ended without a whole summary.json"),
        (
            "import sys; print('stopped by SIGTERM: resume'); sys.exit(143)",
            TrialStoppedError,
            "stopped by SIGTERM: res",
        ),
        ("import os; os.kill(os.getpid(), 15)", TrialStoppedError, "stopped by SIGTERM: it printed nothing"),
        ("import sys; sys.exit('error: no memory')", TrialError, "error: no memory"),
    ],
)
def test_a_trial_that_left_no_summary_fails_alone(monkeypatch, tmp_path, script: str, error: type, words: str):
    real = subprocess.Popen
    monkeypatch.setattr(
        "egrpo.studies.trials.subprocess.Popen", lambda command, **more: real([sys.executable, "-c", script], **more)
    )
    trials = Trials(tmp_path, [], [0], "strict", 1)
    with pytest.raises(error, match=words) as caught:
        trials.run("trial_0000", {}, lambda value, step: False)
    assert type(caught.value) is error


def test_a_stopped_trial_ends_alone_and_is_queued_again(tmp_path):
    class Stopping(Trials):
        def run(self, name: str, chosen: Any, stop: Any) -> float:
            if name == "trial_0000":
                raise TrialStoppedError("stopped by SIGTERM")
            return 0.5

    space = {"lr": {"key": "optimizer.lr", "low": 1e-4, "high": 1e-3}}
    study = optuna.create_study(direction="maximize")
    trials = Stopping(tmp_path, [], [0], "strict", 1)
    study.optimize(lambda trial: one_trial(trial, trials, space), 2, catch=(TrialError,))
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    take_up(study)
    assert study.trials[2].state.name == "WAITING" and study.trials[2].user_attrs["folder"] == "trial_0000"


def test_a_trial_in_a_thread_ends_with_the_search(monkeypatch, tmp_path):
    real = subprocess.Popen
    monkeypatch.setattr("egrpo.studies.trials.POLL", 0.05)
    monkeypatch.setattr(
        "egrpo.studies.trials.subprocess.Popen",
        lambda command, **more: real([sys.executable, "-c", "import time; time.sleep(60)"], **more),
    )
    found: list[BaseException] = []

    def trial() -> None:
        try:
            Trials(tmp_path, [], [0], "strict", 1).run("trial_0000", {}, lambda value, step: False)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=trial)

    def search() -> None:
        with stopping.heeded():
            thread.start()
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                thread.join(20)

    with pytest.raises(Stopped):
        search()
    assert isinstance(found[0], Stopped)


def start(words: list[str], folder: Path) -> subprocess.Popen:
    with (folder / "said").open("w") as said:
        command = [sys.executable, "-m", "egrpo.train", *words]
        return subprocess.Popen(
            command, cwd=REPO, env=environment(), stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(path: Path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 400
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()


@pytest.mark.slow
def test_sigterm_ends_two_ranks_with_one_sentence(runs, tmp_path):
    folder = tmp_path / "run"
    words = [*runs.tiny, "trainer.max_steps=1000", "callbacks.checkpoint.every_n_train_steps=1", "strategy=ddp"]
    words += ["trainer.devices=2", "trainer.limit_val_batches=0", "callbacks.best=null", f"hydra.run.dir={folder}"]
    child = start(words, tmp_path)
    try:
        wait_for(folder / "checkpoints" / "last.ckpt", child)
        child.terminate()
        status = child.wait(60)
        assert session_of(child.pid) == []
    finally:
        kill_session(child.pid)
    told = [line for line in (tmp_path / "said").read_text().splitlines() if "stopped" in line or "rror" in line]
    assert status == 143 and len(told) == 1, told
    assert told[0].startswith(f"stopped by SIGTERM: resume with ckpt_path={folder}/checkpoints/last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_workers_of_a_sweep_end_with_it(runs, tmp_path, how: str):
    words = ["-m", *runs.tiny, "trainer.max_steps=1000", "trainer.limit_val_batches=0", "callbacks.best=null"]
    words += ["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    child = start(words, tmp_path)
    try:
        wait_for(tmp_path / "sweep" / "0" / "metrics.csv", child)
        child.send_signal(getattr(signal, how))
        status = child.wait(60)
        deadline = time.monotonic() + 40
        while session_of(child.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert session_of(child.pid) == []
    finally:
        kill_session(child.pid)
    assert status == {"SIGTERM": 143, "SIGKILL": -9}[how]
    assert ("stopped by SIGTERM: " in (tmp_path / "said").read_text()) is (how == "SIGTERM")
    assert not list(tmp_path.rglob("summary.json"))


def test_what_a_failed_run_leaves_is_json_or_nothing(tmp_path):
    from egrpo.base.files import write_json

    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "summary.json", {"a": 1})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
