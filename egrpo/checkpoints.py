"""What a checkpoint holds, and how its weights come back into a policy.

A checkpoint keeps the weights that training changes, the optimizer and the position of the run. Frozen weights and the
reference come from the model's own path.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from egrpo.base.errors import UserError

ZERO_TAG = "checkpoint"  # the folder in which Lightning has DeepSpeed write
POLICY = "policy."  # the policy's name inside the LightningModule


def trained_names(module: nn.Module) -> set[str]:
    """Names of the weights that training changes."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def check_names(found: Iterable[str], wanted: set[str]) -> None:
    """Raises UserError where a checkpoint's weights are not exactly those that the model trains."""
    found = set(found)
    if odd := sorted(wanted ^ found):
        raise UserError(
            f"the checkpoint does not fit this model: {len(wanted - found)} weights are missing and "
            f"{len(found - wanted)} are surplus (such as {odd[0]}); use the model and adapter it was trained with"
        )


def find_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint file of a run: "last", "best", or a path of its own.

    Raises:
        UserError: there is none; the message lists those that are there.
    """
    if which == "last":
        found = sorted(folder.glob("checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
    elif which == "best":
        found = sorted(folder.glob("checkpoints/best_*.ckpt"), key=lambda path: path.stat().st_mtime)
    else:
        found = [Path(which)] if Path(which).exists() else []
    if not found:
        there = ", ".join(sorted(path.name for path in folder.glob("checkpoints/*.ckpt"))) or "none"
        raise UserError(f"checkpoint={which}: there is no such checkpoint in {folder}/checkpoints (there: {there})")
    return found[-1]


def all_checkpoints(folder: Path) -> dict[int, Path]:
    """Optimizer step -> checkpoint of a run, steps ascending; of several at one step, the first by name.

    Raises:
        UserError: the run has none.
    """
    paths = sorted(folder.glob("checkpoints/*.ckpt"), reverse=True)
    found = {int(saved_position(path)["global_step"]): path for path in paths}
    if not found:
        raise UserError(f"{folder}/checkpoints holds no checkpoints (*.ckpt): name the folder of a run that kept some")
    return dict(sorted(found.items()))


def saved_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint by their names in the LightningModule, whole, whichever strategy wrote it."""
    if not checkpoint.is_dir():
        return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    if not is_divided(checkpoint):
        raise UserError(f"{checkpoint} is not a checkpoint: neither a file nor a folder with DeepSpeed's parts")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # it tells how it counts
        found = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ZERO_TAG, exclude_frozen_parameters=True)
    return {name: value.detach().clone() for name, value in found.items()}


def saved_ranks(checkpoint: Path) -> int:
    """Ranks among which a checkpoint is divided; 1 for one in a single file."""
    return len(list((checkpoint / ZERO_TAG).glob("*optim_states.pt"))) if checkpoint.is_dir() else 1


def is_divided(checkpoint: Path) -> bool:
    """Whether it is a folder that DeepSpeed wrote."""
    return checkpoint.is_dir() and saved_ranks(checkpoint) > 0


def check_checkpoint(path: str | None) -> None:
    """Raises UserError where a checkpoint to resume from is not there, or is not whole."""
    if path is None:
        return
    if not Path(path).exists():
        raise UserError(f"ckpt_path={path}: there is no such checkpoint; runs keep theirs in FOLDER/checkpoints/")
    if Path(path).is_file() and not zipfile.is_zipfile(path):  # strategies that share weights write folders
        raise UserError(f"ckpt_path={path}: this file is not a checkpoint, or was cut short; give an earlier one")
    folder = Path(path)  # of DeepSpeed's parts, or of torch's, which name their index .metadata
    if folder.is_dir() and not is_divided(folder) and not (folder / ".metadata").is_file():
        raise UserError(f"ckpt_path={path}: this folder is not a checkpoint; give one, as FOLDER/checkpoints/last.ckpt")


def saved_position(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside weights and optimizer: steps, loops, callbacks, rewards."""
    file = checkpoint
    if checkpoint.is_dir():
        file = sorted((checkpoint / ZERO_TAG).glob("*mp_rank_00_model_states.pt"))[0]
    state = torch.load(file, map_location="cpu", weights_only=False)
    return {name: value for name, value in state.items() if name not in ("module", "state_dict", "optimizer_states")}


def with_new_optimizer(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint divided among ranks as the whole that Lightning expects of a file, without its optimizer."""
    return {**saved_position(checkpoint), "state_dict": saved_weights(checkpoint), "optimizer_states": []}


def beside(path: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return path.with_name(f"{path.name}.part")


def discard(path: Path) -> None:
    """Removes a checkpoint, file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(path: Path) -> None:
    """Gives a whole checkpoint its name; one that had it, file or folder, goes only then."""
    old = path.with_name(f"{path.name}.old")
    discard(old)
    if path.exists():
        path.rename(old)
    beside(path).rename(path)
    discard(old)


def load_policy_weights(policy: nn.Module, checkpoint: Path) -> None:
    """Puts a checkpoint's trained weights into a freshly built policy.

    Raises:
        UserError: they belong to another model or adapter.
    """
    weights = {name.removeprefix(POLICY): value for name, value in saved_weights(checkpoint).items()}
    check_names(weights, trained_names(policy))
    policy.load_state_dict(weights, strict=False)
