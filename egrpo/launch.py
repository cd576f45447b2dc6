"""Starting a run on several devices: `python -m egrpo.train trainer.devices=8` becomes a torchrun of itself.

A job of a sweep (`-m`) starts that torchrun beside itself and waits for it, for the sweep must get its job back.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from egrpo import distributed
from egrpo.base.errors import UserError
from egrpo.base.stopping import PARENT
from egrpo.distributed import launched

SILENT = "EGRPO_TORCHRUN"  # environment variable of ranks whose launcher says what stopped them
SUMMARY = "summary.json"  # what a training run leaves last


class LaunchError(UserError):
    """A run that was started by torchrun failed; its own processes have told why, and kept the traceback."""


def launch(cfg: DictConfig) -> bool:
    """Starts torchrun with a process a device, where more than one is asked for and none is launched.

    torchrun ends all processes when one fails, and leaves no orphans; Lightning's own launcher does.

    Returns:
        Whether the run is already done, by processes that this one, a job of a sweep, has started. Outside a sweep this
        process is replaced by torchrun, and the call does not return.

    Raises:
        UserError: several nodes are asked for, which only a launcher on each of them can start; or a launcher started
            another number of processes than the trainer asks for; or a sweep's launcher does not fit the run.
        LaunchError: the run of a sweep's job failed.
    """
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    count = len(devices) if not isinstance(devices, int | str) and isinstance(devices, Sequence) else devices
    if in_sweep():
        _check_sweep(count if cfg.trainer.accelerator != "cpu" else 0)
    if not isinstance(count, int) or count < 0:
        return False  # "auto", or all: Lightning finds out
    if launched() > 1:
        if launched() != count * nodes:
            raise UserError(
                f"{launched()} processes were launched, but trainer.devices={count} x trainer.num_nodes={nodes}: "
                "let both tell the same"
            )
        return False
    if nodes > 1:
        raise UserError(
            f"trainer.num_nodes={nodes}: start the run on every node, e.g. torchrun --nnodes={nodes} "
            f"--nproc-per-node={count} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -m egrpo.train ... "
            "(docs/multi_node.md)"
        )
    if count < 2:
        return False
    torchrun = ["-m", "egrpo.torchrun", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *torchrun, "-m", "egrpo.train", *words_of_run(cfg.run_dir)]
    environment = {"OMP_NUM_THREADS": str(cfg.threads), **os.environ}
    if not in_sweep():
        os.execve(sys.executable, command, environment)
    _run(command, environment | {PARENT: str(os.getpid())})
    if not is_whole(Path(cfg.run_dir)):
        raise LaunchError(f"the run ended without {SUMMARY} in {cfg.run_dir}; its output above tells why")
    return True


def is_whole(folder: Path) -> bool:
    """Whether a training run in this folder came to its end: its summary is there, and can be read."""
    try:
        return isinstance(json.loads((folder / SUMMARY).read_text()), dict)
    except (OSError, ValueError):
        return False


def resume_training(folder: Path) -> str:
    """How a training run that was stopped is resumed."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        return f"resume with ckpt_path={last} hydra.run.dir={folder} (or go_on=true in place of ckpt_path)"
    return f"no checkpoint was saved so far; the same command with hydra.run.dir={folder} starts again"


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep (`-m`), whichever launcher started it."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def words_of_run(run_dir: str) -> list[str]:
    """The command line that makes Hydra compose this very run again, alone and in `run_dir`.

    Not sys.argv: in a sweep that is the sweep's, or that of a worker.
    """
    hydra = HydraConfig.get()
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    places = [f"{flags[s.provider]}={s.path}" for s in hydra.runtime.config_sources if s.provider in flags]
    own = [word for word in hydra.overrides.hydra if not word.startswith(("hydra.run.dir=", "hydra.mode="))]
    quoted = run_dir.replace("'", "\\'")
    there = [f"hydra.run.dir='{quoted}'", "hydra.mode=RUN"]
    return [*places, f"--config-name={hydra.job.config_name}", *own, *hydra.overrides.task, *there]


def _check_sweep(gpus: int | str) -> None:
    launcher = HydraConfig.get().launcher
    tasks = launcher.get("nodes", 1) * launcher.get("tasks_per_node", 1)
    if launched() > 1:
        raise UserError("a sweep (-m) starts the processes of its jobs itself: start it without torchrun")
    if tasks > 1:
        raise UserError(
            f"hydra.launcher.nodes x hydra.launcher.tasks_per_node = {tasks} would train the same run {tasks} times: "
            "leave both at 1; trainer.devices starts a process a device, and docs/slurm/train.sbatch uses several nodes"
        )
    given = launcher.get("gpus_per_node")
    if given is not None and isinstance(gpus, int) and gpus > given:
        raise UserError(f"trainer.devices={gpus}, but hydra.launcher.gpus_per_node={given}: ask for as many")


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Runs a command to its end, passing on what it says; raises LaunchError with its sentence if it fails."""
    told = ""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace") as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                sys.stderr.write(line)
                if not told and line.startswith("error: "):
                    told = line.removeprefix("error: ").strip()
        except BaseException:  # stopped by the user or by the cluster: the run's processes must not outlive this one
            child.terminate()
            raise
    if child.returncode:
        raise LaunchError(told or f"torchrun ended with status {child.returncode}; its output above tells why")


def is_from_launcher(error: BaseException) -> bool:
    """Whether the error is a sweep's launcher's own, such as a killed job or a missing cluster: its text tells all."""
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    missing = type(error) is RuntimeError and "are you indeed on a slurm cluster" in str(error)
    return missing or isinstance(error, FailedSubmissionError | UncompletedJobError | BrokenExecutor)


def last_of_restart(folder: Path) -> str | None:
    """After a restart by torchrun (--max-restarts) or SLURM (requeue): the last checkpoint that the folder holds.

    All ranks call it: of several torchruns, only those count a restart whose own processes failed.
    """
    from egrpo.checkpoints import last_checkpoint

    last = last_checkpoint(folder)
    own = any(int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return str(last) if any(distributed.gather(own)) and last is not None else None


def prepare_rank() -> None:
    """Gives all ranks but the first a folder of their own for Hydra's files, so that none writes over another's."""
    if launched() > 1 and int(os.environ["RANK"]) > 0:
        folder = tempfile.mkdtemp(prefix="egrpo_rank_")
        atexit.register(_discard_rank, Path(folder))
        sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("hydra.run.dir=")]
        sys.argv.append(f"hydra.run.dir={folder}")


def _discard_rank(folder: Path) -> None:
    """Removes what Hydra left of a rank, but not an error that could be written nowhere else."""
    if not (folder / "error.txt").exists():
        shutil.rmtree(folder, ignore_errors=True)
