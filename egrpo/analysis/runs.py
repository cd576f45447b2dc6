"""Training runs that a study compares: those that are missing are made first, side by side, as any run is."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from egrpo.analysis.work import Setting
from egrpo.base.errors import UserError
from egrpo.base.files import hold
from egrpo.launch import is_whole
from egrpo.settings import override

LOG = "training.log"  # what a training prints, in its run's folder
POLL = 0.5  # seconds between looks at whether trainings have ended


def make_runs(settings: Mapping[str, Setting], threads: int = 1) -> None:
    """Trains what is missing, and goes on with what was left unfinished; says so, a line each.

    Raises:
        UserError: a run is missing that no overrides tell how to make, or a training failed.
    """
    missing = {name: setting for name, setting in settings.items() if setting.ckpt_path and not _finished(setting)}
    for name, setting in missing.items():
        if setting.train is None and not Path(str(setting.ckpt_path)).exists():
            raise UserError(
                f"settings.{name}.ckpt_path={setting.ckpt_path}: there is no such run or checkpoint; name one, or say "
                f"how to train it with settings.{name}.train=[OVERRIDE,...]"
            )
    # Settings may share a run.
    wanted = {Path(str(s.ckpt_path)): (name, s.train) for name, s in missing.items() if s.train is not None}
    with ExitStack() as held:
        started = []
        for folder, (name, overrides) in wanted.items():
            lock = held.enter_context(_waiting_lock(folder, name))
            if not is_whole(folder):  # a run that another study was making is there now
                started.append((name, folder, _start(name, folder, overrides, threads, lock)))
        _wait(started)


def _finished(setting: Setting) -> bool:
    """Whether there is nothing to train: a whole run, or a checkpoint of which it is not for us to say."""
    path = Path(str(setting.ckpt_path))
    return path.is_file() if setting.train is None else is_whole(path)


def _waiting_lock(folder: Path, name: str) -> AbstractContextManager[int]:
    """Holds the run's folder; its training inherits the lock, and so keeps it even where this process is killed."""
    told = f"setting {name}: waiting for a training that already runs in {folder}"
    return hold(folder, "the run in", name=".training.lock", waiting=lambda: print(told, flush=True))


def _start(name: str, folder: Path, overrides: Sequence[str] | None, threads: int, lock: int) -> subprocess.Popen:
    """Starts a training, from its last checkpoint where there is one."""
    last = folder / "checkpoints" / "last.ckpt"
    resume = [override("ckpt_path", str(last))] if last.exists() else []
    command = [sys.executable, "-m", "egrpo.train", *(overrides or []), *resume, override("hydra.run.dir", str(folder))]
    told = shlex.join(["python", *command[1:]])
    print(f"setting {name}: {'goes on with' if resume else 'first trains'} its run: {told}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, pass_fds=[lock]
        )


def _wait(started: list[tuple[str, Path, subprocess.Popen]]) -> None:
    """Waits for all trainings; ends the others where one fails."""
    begun = time.monotonic()
    running = list(started)
    try:
        while running:
            for entry in list(running):
                name, folder, process = entry
                if process.poll() is None:
                    continue
                if process.returncode or not is_whole(folder):
                    raise UserError(
                        f"settings.{name}: its training ended with exit code {process.returncode}; {_last_line(folder)}"
                    )
                print(f"setting {name}: trained in {time.monotonic() - begun:.0f} s: {folder}", flush=True)
                running.remove(entry)
            time.sleep(POLL)
    finally:
        for _, _, process in running:
            process.terminate()
            process.wait()


def _last_line(folder: Path) -> str:
    """What a failed training said last, and where all of it is."""
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "stopped by "))]
    errors = errors or [line for line in lines if line.strip()][-1:]
    return f"{errors[-1] if errors else 'it printed nothing'} (all it printed is in {folder / LOG})"
