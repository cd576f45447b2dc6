"""Runs that a study compares: made where they are missing, waited for, gone on with, and told where they fail."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from egrpo.analysis import runs
from egrpo.analysis.runs import make_runs
from egrpo.analysis.work import Setting


def setting(folder: Path, train: list[str] | None = None) -> Setting:
    return Setting("trained", {}, ckpt_path=str(folder), train=train)


def scripted(script: str, commands: list[list[str]], real: Any = subprocess.Popen) -> Any:
    """`subprocess.Popen` that runs a script in place of the training, with the run's folder as its argument."""

    def start(command: list[str], **settings: Any) -> Any:
        commands.append(command)
        return real([sys.executable, "-c", script, command[-1].removeprefix("hydra.run.dir=")], **settings)

    return start


TRAINS = "import sys, pathlib; pathlib.Path(sys.argv[1], 'summary.json').write_text('{}')"


def test_a_missing_run_without_overrides_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"settings\.trained\.ckpt_path=.*there is no such run"):
        make_runs({"trained": setting(tmp_path / "nothing")})
    make_runs({"trained": setting(tmp_path), "base": Setting("base", {})})  # what is there is left alone


def test_missing_runs_are_made_once_and_said(tmp_path: Path, monkeypatch: Any, capsys: Any):
    commands: list[list[str]] = []
    monkeypatch.setattr(runs.subprocess, "Popen", scripted(TRAINS, commands))
    two = {"a": setting(tmp_path / "run", ["seed=1"]), "b": setting(tmp_path / "run", ["seed=1"])}
    make_runs(two)
    make_runs(two)
    assert [command[1:] for command in commands] == [
        ["-m", "egrpo.train", "seed=1", f"hydra.run.dir={tmp_path / 'run'}"]
    ]
    told = capsys.readouterr().out
    assert f"first trains its run: python -m egrpo.train seed=1 hydra.run.dir={tmp_path / 'run'}" in told


def test_an_unfinished_run_goes_on(tmp_path: Path, monkeypatch: Any):
    commands: list[list[str]] = []
    monkeypatch.setattr(runs.subprocess, "Popen", scripted(TRAINS, commands))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    make_runs({"trained": setting(tmp_path, ["seed=1"])})
    assert f"ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}" in commands[0]


def test_a_training_that_fails_ends_the_others(tmp_path: Path, monkeypatch: Any):
    commands: list[list[str]] = []
    script = (
        "import sys, time\nif sys.argv[1].endswith('bad'): print('error: no such reward\\nbye'); sys.exit(1)\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(runs.subprocess, "Popen", scripted(script, commands))
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"settings\.b: its training ended with exit code 1; error: no such reward"):
        make_runs({"a": setting(tmp_path / "good", []), "b": setting(tmp_path / "bad", [])})
    assert time.monotonic() - begun < 30 and len(commands) == 2


def test_a_run_that_is_being_made_is_waited_for(tmp_path: Path, monkeypatch: Any, capsys: Any):
    commands: list[list[str]] = []
    monkeypatch.setattr(runs.subprocess, "Popen", scripted(TRAINS, commands))
    lock = (tmp_path / ".training.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish() -> None:
        (tmp_path / "summary.json").write_text("{}")
        lock.close()

    threading.Timer(0.3, finish).start()
    make_runs({"trained": setting(tmp_path, ["seed=1"])})
    assert not commands and "waiting for a training" in capsys.readouterr().out
