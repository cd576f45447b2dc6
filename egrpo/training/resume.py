"""What must hold before a run goes on from a checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What a resumed run may change in its own folder: nothing that decides what was computed so far.
FREE = ("ckpt_path", "run_dir", "threads", "logger", "callbacks", "trainer.max_steps", "trainer.enable_progress_bar")


def check_checkpoint(path: str | None) -> None:
    """Raises ValueError where a checkpoint to resume from is not there, or is not whole."""
    if path is None:
        return
    if not Path(path).exists():
        raise ValueError(f"ckpt_path={path}: there is no such checkpoint; runs keep theirs in FOLDER/checkpoints/")
    if Path(path).is_file() and not zipfile.is_zipfile(path):  # strategies that share weights write folders
        raise ValueError(f"ckpt_path={path}: this file is not a checkpoint, or was cut short; give an earlier one")


def check_same_settings(cfg: DictConfig, folder: Path) -> None:
    """Raises ValueError where a run resumes in its own folder with settings other than those it began with.

    Such a run would read like one experiment and be two.
    """
    before = folder / "config.yaml"
    if cfg.ckpt_path is None or not before.is_file():
        return
    old, new = (_flat(OmegaConf.to_container(c, resolve=True)) for c in (OmegaConf.load(before), cfg))
    changed = [
        f"{name}={new.get(name)} (was {old.get(name)})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not any(name == free or name.startswith(free + ".") for free in FREE)
    ]
    if changed:
        raise ValueError(
            f"this run began with other settings: {', '.join(changed[:5])}; resume with the overrides that it began "
            "with, or give another hydra.run.dir"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {name: value for key, child in node.items() for name, value in _flat(child, f"{prefix}{key}.").items()}
