"""Runs a test's function on several processes, each a rank on gloo, and brings back what each returns."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""}


def torchrun(words: list[str], count: int = 2, timeout: float = 180, restarts: int = 0) -> tuple[int, str]:
    """Exit status and all output of torchrun; everything it started is gone when this returns.

    Raises:
        TimeoutError: it took longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += [f"--max-restarts={restarts}", *words]
    with tempfile.TemporaryFile("w+") as file:
        child = subprocess.Popen(
            command, cwd=REPO, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            file.seek(0)
            raise TimeoutError(f"not done after {timeout} s:\n{file.read()[-4000:]}") from None
        finally:
            kill_session(child.pid)
            child.wait()
        file.seek(0)
        return status, file.read()


def kill_session(leader: int) -> None:
    """Ends every process of the session that `leader` started."""
    for process in session_of(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def session_of(leader: int) -> list[int]:
    """Processes of a session that are not dead yet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def on_ranks(function: Any, folder: Path, *arguments: Any, count: int = 2, timeout: float = 180) -> list[Any]:
    """Calls a module-level `function(*arguments)` on `count` ranks; gives back their results in rank order."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "call.pkl").write_bytes(pickle.dumps((function.__module__, function.__name__, arguments)))
    status, output = torchrun(["-m", "tests.distributed.ranks", str(folder)], count, timeout)
    assert status == 0, output[-6000:]
    return [pickle.loads((folder / f"result_{rank}.pkl").read_bytes()) for rank in range(count)]


def main() -> None:
    import torch

    from egrpo import distributed

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    module, name, arguments = pickle.loads((folder / "call.pkl").read_bytes())
    distributed.connect()
    result = getattr(importlib.import_module(module), name)(*arguments)
    (folder / f"result_{distributed.rank()}.pkl").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main()
