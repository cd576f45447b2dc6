"""Runs cases through the same door as users: `python -m egrpo.COMMAND`, within this process where no signal is sent."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.case import Case

REPO = Path(__file__).resolve().parents[2]
KINDS = ("clear", "unclear", "traceback", "silent", "hang", "lost")
ENDS = ("error: ", "stopped by ")  # how the sentence of a command that did not succeed begins
PROGRESS = re.compile(r"\d+%\||\d+it \[")  # a bar that a library drew before
LONGEST = 12  # lines of a sentence: one a fault


class Overdue(BaseException):
    """The case took longer than its limit; no `except Exception` may swallow it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, in seconds, and what it said."""

    code: int | None
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Judged:
    """A case with its kind, and why it is not clear."""

    case: Case
    kind: str
    why: str
    seconds: float


def judge(case: Case) -> Judged:
    """Runs a case in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory(prefix="egrpo_campaign_") as name:
        folder = Path(name).resolve()
        for path, content in case.files.items():
            _make(folder / path, content)
        before = _contents(folder)
        with chdir(folder), _environment(case.env):
            ended = _as_process(case, folder) if case.signal else _here(case)
        kind, why = _kind(case, ended, _gone(case, folder, before), folder)
    return Judged(case, kind, why, ended.seconds)


def _make(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _gone(case: Case, folder: Path, before: dict[str, str]) -> list[str]:
    now = _contents(folder)
    return [name for name, digest in before.items() if name not in case.makes and now.get(name) != digest]


def _kind(case: Case, ended: Ended, gone: list[str], folder: Path) -> tuple[str, str]:
    said = "\n".join(line for line in ended.err.splitlines() if not PROGRESS.search(line)).strip()
    last = said.splitlines()[-1] if said else "nothing on stderr"
    if ended.code is None or ended.seconds > case.limit:
        return "hang", f"{ended.seconds:.0f} s"
    if gone:
        return "lost", f"changed or removed: {', '.join(gone)}"
    if "Traceback (most recent call last)" in ended.err:
        return "traceback", last
    if case.code and not ended.code:
        return "silent", f"exit code 0: {(ended.out.strip().splitlines() or ['no word'])[-1]}"
    if ended.code != case.code:
        return "unclear", f"exit code {ended.code}, not {case.code}: {last}"
    if absent := [pattern for pattern in case.leaves if not any(folder.glob(pattern))]:
        return "lost", f"not there: {', '.join(absent)}"
    if case.code and (not said.startswith(ENDS) or len(said.splitlines()) > LONGEST):
        return "unclear", f"not one sentence: {said[:300]!r}"
    where = said if case.code else ended.out + ended.err
    if lacking := [pattern for pattern in case.says if not re.search(pattern, where)]:
        kind = "unclear" if case.code else "silent"
        return kind, f"{' and '.join(lacking)} not in: {where.strip()[-400:]!r}"
    return "clear", ""


@contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """A case's variables, and afterwards all of before: commands set some."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    for name in (name for name, value in changes.items() if value is None):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _here(case: Case) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    argv, started, code = sys.argv, time.monotonic(), None
    sys.argv = [f"egrpo.{case.command}", *case.words]
    former = signal.signal(signal.SIGALRM, _overdue)
    signal.setitimer(signal.ITIMER_REAL, case.limit)
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*")
            runpy.run_module(f"egrpo.{case.command}", run_name="__main__", alter_sys=False)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except Overdue:
        code = None
    except BaseException as error:  # what a process of its own would print
        import traceback

        err.write("".join(traceback.format_exception(error)))
        code = 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        sys.argv = argv
        _forget_logging()
    return Ended(code, out.getvalue(), err.getvalue(), time.monotonic() - started)


def _overdue(number: int, frame: Any) -> None:
    raise Overdue


def _forget_logging() -> None:
    """Hydra's handlers hold on to files of the case and to its streams."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()


def _as_process(case: Case, folder: Path) -> Ended:
    """A process of its own, to which the signal is sent."""
    command = [sys.executable, "-m", f"egrpo.{case.command}", *case.words]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            child.wait(case.after)
        except subprocess.TimeoutExpired:
            child.send_signal(case.signal or signal.SIGTERM)
        try:
            out, err = child.communicate(timeout=case.limit)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            return Ended(None, out, err, time.monotonic() - started)
    return Ended(child.returncode, out, err, time.monotonic() - started)
