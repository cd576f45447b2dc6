"""Starting a run on several devices: `python -m egrpo.train trainer.devices=8` becomes a torchrun of itself."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from egrpo.distributed import launched


def launch(cfg: DictConfig) -> None:
    """Replaces this process by torchrun with a process a device, where more than one is asked for and none is launched.

    torchrun ends all processes when one fails, and leaves no orphans; Lightning's own launcher does.

    Raises:
        ValueError: several nodes are asked for, which only a launcher on each of them can start; or a launcher started
            another number of processes than the trainer asks for.
    """
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    count = len(devices) if not isinstance(devices, int | str) and isinstance(devices, Sequence) else devices
    if not isinstance(count, int) or count < 0:
        return  # "auto", or all: Lightning finds out
    if launched() > 1:
        if launched() != count * nodes:
            raise ValueError(
                f"{launched()} processes were launched, but trainer.devices={count} x trainer.num_nodes={nodes}: "
                "let both tell the same"
            )
        return
    if nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={nodes}: start the run on every node, e.g. torchrun --nnodes={nodes} "
            f"--nproc-per-node={count} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -m egrpo.train ..."
        )
    if count > 1:
        words = ["-m", "egrpo.torchrun", "--standalone", f"--nproc-per-node={count}", "-m", "egrpo.train"]
        given = [word for word in sys.argv[1:] if not word.startswith("hydra.run.dir=")]
        os.environ.setdefault("OMP_NUM_THREADS", str(cfg.threads))
        os.execv(sys.executable, [sys.executable, *words, *given, f"hydra.run.dir={cfg.run_dir}"])


def last_of_restart(folder: Path) -> str | None:
    """After a restart by torchrun (--max-restarts): the last checkpoint that the earlier attempt left in the folder."""
    last = folder / "checkpoints" / "last.ckpt"
    return str(last) if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and last.exists() else None


def prepare_rank() -> None:
    """Gives all ranks but the first a folder of their own for Hydra's files, so that none writes over another's."""
    if launched() > 1 and int(os.environ["RANK"]) > 0:
        folder = tempfile.mkdtemp(prefix="egrpo_rank_")
        sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("hydra.run.dir=")]
        sys.argv.append(f"hydra.run.dir={folder}")
