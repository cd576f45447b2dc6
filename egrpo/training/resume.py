"""What must hold before a run goes on from a checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from egrpo.training.checkpoints import is_divided

# What a resumed run may change without a word: nothing that decides what is computed.
FREE = ("ckpt_path", "run_dir", "threads", "logger", "callbacks", "trainer.max_steps", "trainer.enable_progress_bar")


def check_checkpoint(path: str | None) -> None:
    """Raises ValueError where a checkpoint to resume from is not there, or is not whole."""
    if path is None:
        return
    if not Path(path).exists():
        raise ValueError(f"ckpt_path={path}: there is no such checkpoint; runs keep theirs in FOLDER/checkpoints/")
    if Path(path).is_file() and not zipfile.is_zipfile(path):  # strategies that share weights write folders
        raise ValueError(f"ckpt_path={path}: this file is not a checkpoint, or was cut short; give an earlier one")
    folder = Path(path)  # of DeepSpeed's parts, or of torch's, which name their index .metadata
    if folder.is_dir() and not is_divided(folder) and not (folder / ".metadata").is_file():
        raise ValueError(
            f"ckpt_path={path}: this folder is not a checkpoint; give one, as FOLDER/checkpoints/last.ckpt"
        )


def changed_settings(cfg: DictConfig, folder: Path) -> list[str]:
    """What differs from the settings that the run in this folder began with, "name=new (was old)" each.

    A run that goes on with other settings reads like one experiment and is two; what may change freely is left out.
    """
    before = folder / "config.yaml"
    if cfg.ckpt_path is None or not before.is_file():
        return []
    old, new = (_flat(OmegaConf.to_container(c, resolve=True)) for c in (OmegaConf.load(before), cfg))
    return [
        f"{name}={new.get(name)} (was {old.get(name)})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not any(name == free or name.startswith(free + ".") for free in FREE)
    ]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {name: value for key, child in node.items() for name, value in _flat(child, f"{prefix}{key}.").items()}
