"""What a run that goes on from a checkpoint changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What a resumed run may change without a word: nothing that decides what is computed.
FREE = ("ckpt_path", "run_dir", "threads", "logger", "callbacks", "trainer.max_steps", "trainer.enable_progress_bar")


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
