"""What a checkpoint holds, and how its weights come back into a policy.

A checkpoint keeps the weights that training changes, the optimizer and the position of the run. Frozen weights and the
reference come from the model's own path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

POLICY = "policy."  # the policy's name inside the LightningModule


def trained_names(module: nn.Module) -> set[str]:
    """Names of the weights that training changes."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def check_names(found: Iterable[str], wanted: set[str]) -> None:
    """Raises ValueError where a checkpoint's weights are not exactly those that the model trains."""
    found = set(found)
    if odd := sorted(wanted ^ found):
        raise ValueError(
            f"the checkpoint does not fit this model: {len(wanted - found)} weights are missing and "
            f"{len(found - wanted)} are surplus (such as {odd[0]}); use the model and adapter it was trained with"
        )


def find_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint file of a run: "last", "best", or a path of its own.

    Raises:
        ValueError: there is none; the message lists those that are there.
    """
    if which == "last":
        found = sorted(folder.glob("checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
    elif which == "best":
        found = sorted(folder.glob("checkpoints/best_*.ckpt"), key=lambda path: path.stat().st_mtime)
    else:
        found = [Path(which)] if Path(which).is_file() else []
    if not found:
        there = ", ".join(sorted(path.name for path in folder.glob("checkpoints/*.ckpt"))) or "none"
        raise ValueError(f"checkpoint={which}: there is no such checkpoint in {folder}/checkpoints (there: {there})")
    return found[-1]


def load_policy_weights(policy: nn.Module, checkpoint: Path) -> None:
    """Puts a checkpoint's trained weights into a freshly built policy.

    Raises:
        ValueError: they belong to another model or adapter.
    """
    saved: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix(POLICY): value for name, value in saved.items()}
    check_names(weights, trained_names(policy))
    policy.load_state_dict(weights, strict=False)
