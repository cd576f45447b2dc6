"""A run's folder belongs to one training at a time, and a new run overwrites none."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from egrpo.base.errors import FolderTakenError, UserError
from egrpo.base.files import hold
from egrpo.entry import run
from egrpo.train import train
from egrpo.training.resume import LOCK, check_new, training_in

SHORT = ("trainer.limit_val_batches=0", "trainer.max_steps=1", "callbacks.best=null")


@pytest.fixture
def fail(runs, monkeypatch, capfd) -> Iterator[Callable[..., str]]:
    """Runs the command in this process; returns what it says of its end with status 1."""

    def call(folder: Path, *overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train", *runs.tiny, f"hydra.run.dir={folder}", *overrides])
        with pytest.raises(SystemExit) as stop:
            run(train, "train")
        assert stop.value.code == 1
        return capfd.readouterr().err

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers, level = logging.root.handlers[:], logging.root.level
    yield call
    logging.root.handlers[:], logging.root.level = handlers, level


def setting(ckpt_path: Any = None, go_on: bool = False) -> Any:
    return SimpleNamespace(ckpt_path=None if ckpt_path is None else str(ckpt_path), go_on=go_on)


@pytest.mark.parametrize("more", [(), ("go_on=true",)])
def test_two_trainings_do_not_share_a_folder(fail, tmp_path, more):
    (tmp_path / "error.txt").write_text("what an earlier start left")
    with hold(tmp_path, "the run in", name=LOCK):
        told = fail(tmp_path, *SHORT, *more)
    assert f"error: the run in {tmp_path} is being written by another process: wait for it, end it, or give" in told
    assert "hydra.run.dir=FOLDER" in told and "Traceback" not in told
    assert (tmp_path / "error.txt").read_text() == "what an earlier start left"
    assert not (tmp_path / "metrics.csv").exists() and not (tmp_path / "config.yaml").exists()


def test_a_new_run_does_not_overwrite_a_finished_one(runs, fail, tmp_path):
    runs.run(tmp_path, *SHORT)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != LOCK}
    told = fail(tmp_path, *SHORT, "seed=7")
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"error: {tmp_path} holds a finished run, which a new run would overwrite" in told
    assert all(way in told for way in ("hydra.run.dir=FOLDER", f"ckpt_path={last} ", "go_on=true"))
    assert all(path.read_bytes() == content for path, content in before.items())
    assert json.loads((tmp_path / "summary.json").read_text())["seed"] == 0


def test_whom_a_folder_is_open_to(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    check_new(setting(), tmp_path)  # new, or a run that came to nothing
    last.parent.mkdir()
    last.touch()
    with pytest.raises(FolderTakenError, match="holds a run that was stopped after its last checkpoint"):
        check_new(setting(), tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    for other in (None, tmp_path.parent / "other" / "checkpoints" / "last.ckpt"):
        with pytest.raises(FolderTakenError, match="holds a finished run"):
            check_new(setting(other), tmp_path)
    check_new(setting(last), tmp_path)
    check_new(setting(os.path.relpath(last)), tmp_path)
    check_new(setting(go_on=True), tmp_path)


def test_the_folder_is_free_again_after_a_failure(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="no memory"), training_in(setting(), tmp_path):
            raise UserError("no memory")
