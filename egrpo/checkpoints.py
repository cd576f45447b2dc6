"""What a checkpoint holds, and how its weights come back into a policy.

A checkpoint keeps the weights that training changes, the optimizer and the position of the run. Frozen weights and the
reference come from the model's own path. It is one file (one device, DDP), a folder of parts that DeepSpeed wrote, or
a folder of parts that FSDP2 wrote (`egrpo.sharded`). Readers map files into memory, so that nobody but a resumed run
reads the optimizer, and nothing in them is ever run (`egrpo.tensor_files`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import nn

from egrpo import sharded
from egrpo.atomic import beside, discard, put_in_place, recover
from egrpo.tensor_files import CheckpointError, check_finite, check_is_data, read_tensors, readable, weights_only

__all__ = ["beside", "discard", "put_in_place"]  # and what is defined here

ZERO_TAG = "checkpoint"  # the folder in which Lightning has DeepSpeed write
POLICY = "policy."  # the policy's name inside the LightningModule
HEAVY = ("module", "state_dict", "optimizer_states")  # entries of a checkpoint that are not its position


def trained_names(module: nn.Module) -> set[str]:
    """Names of the weights that training changes."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def check_names(found: Iterable[str], wanted: set[str]) -> None:
    """Raises CheckpointError where a checkpoint's weights are not exactly those that the model trains."""
    found = set(found)
    if odd := sorted(wanted ^ found):
        raise CheckpointError(
            f"the checkpoint does not fit this model: {len(wanted - found)} weights are missing and "
            f"{len(found - wanted)} are surplus (such as {odd[0]}); use the model and adapter it was trained with"
        )


def check_fit(weights: Mapping[str, Any], module: nn.Module, prefix: str = "") -> None:
    """Raises CheckpointError where a checkpoint's weights differ in name or shape from those that the module trains.

    Args:
        weights: Tensors, or anything with their `shape`, by name.
        module: A policy or LightningModule; its weights may be divided among ranks.
        prefix: What the names of `weights` begin with and the module's do not.
    """
    trained = {f"{prefix}{name}": p for name, p in module.named_parameters() if p.requires_grad}
    check_names(weights, set(trained))
    for name, parameter in trained.items():
        wanted = tuple(getattr(parameter, "ds_shape", parameter.shape))  # DeepSpeed leaves a divided weight empty
        if tuple(weights[name].shape) != wanted:
            raise CheckpointError(
                f"the checkpoint does not fit this model: {name} has the shape {tuple(weights[name].shape)} there and "
                f"{wanted} in the model; use the model and adapter it was trained with"
            )


def find_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint of a run: "last", "best", or a path of its own.

    Raises:
        CheckpointError: there is none; the message lists those that are there.
    """
    if which == "last":
        last_checkpoint(folder)
    if which in ("last", "best"):
        found = [p for p in folder.glob(f"checkpoints/{which}*.ckpt") if p.exists()]
        found.sort(key=lambda path: path.stat().st_mtime)
    else:
        found = [Path(which)] if Path(which).exists() else []
    if not found:
        there = ", ".join(sorted(path.name for path in folder.glob("checkpoints/*.ckpt"))) or "none"
        raise CheckpointError(
            f"checkpoint={which}: there is no such checkpoint in {folder}/checkpoints (there: {there})"
        )
    check_checkpoint(str(found[-1]), "checkpoint")
    return found[-1]


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a run's folder; None if it has none.

    Raises:
        CheckpointError: its link leads nowhere.
    """
    last = folder / "checkpoints" / "last.ckpt"
    recover(last)
    if last.is_symlink() and not last.exists():
        raise CheckpointError(_lost(last, last))
    return last if last.exists() else None


def all_checkpoints(folder: Path) -> dict[int, Path]:
    """Optimizer step -> checkpoint of a run, steps ascending; of several at one step, the first by name.

    Raises:
        CheckpointError: the run has none, or one is damaged.
    """
    paths = sorted(folder.glob("checkpoints/*.ckpt"), reverse=True)
    found = {int(saved_position(path)["global_step"]): path for path in paths}
    if not found:
        raise CheckpointError(
            f"{folder}/checkpoints holds no checkpoints (*.ckpt): name the folder of a run that kept some"
        )
    return dict(sorted(found.items()))


def saved_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint by their names in the LightningModule, whole, whichever strategy wrote it.

    Those of a single file are mapped into memory and read when they are used.

    Raises:
        CheckpointError: it is no checkpoint, or is damaged.
    """
    if not checkpoint.is_dir():
        return read_file(checkpoint)["state_dict"]
    if sharded.is_sharded(checkpoint):
        return sharded.read_weights(checkpoint)
    if not is_divided(checkpoint):
        raise CheckpointError(f"{checkpoint} is not a checkpoint: neither a file nor a folder of parts")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    settings: dict[str, Any] = {"tag": ZERO_TAG, "exclude_frozen_parameters": True, "lazy_mode": True}
    with readable(checkpoint), weights_only(mapped=True), contextlib.redirect_stdout(io.StringIO()):  # it says how
        found = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), **settings)
        return {name: value.contiguous().detach() for name, value in found.items()}


def read_file(path: Path) -> dict[str, Any]:
    """All of a checkpoint in a single file, mapped into memory.

    Raises:
        CheckpointError: it is no checkpoint, or is damaged.
    """
    state = read_tensors(path)
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), Mapping):
        raise CheckpointError(f"{path} is not the checkpoint of a training run: it holds no weights by name")
    return state


def saved_ranks(checkpoint: Path) -> int:
    """Ranks among which a checkpoint is divided; 1 for one in a single file."""
    if sharded.is_sharded(checkpoint):
        return int(sharded.read_index(checkpoint)["ranks"])
    return len(list((checkpoint / ZERO_TAG).glob("*optim_states.pt"))) if checkpoint.is_dir() else 1


def is_divided(checkpoint: Path) -> bool:
    """Whether it is a folder that DeepSpeed wrote."""
    return checkpoint.is_dir() and len(list((checkpoint / ZERO_TAG).glob("*optim_states.pt"))) > 0


def check_checkpoint(path: str | None, name: str = "ckpt_path") -> None:
    """Raises CheckpointError where a checkpoint is not there, is something else, or is not whole.

    Args:
        path: File or folder; None is no checkpoint, and fine.
        name: The setting that named it.
    """
    if path is None:
        return
    place = Path(path)
    recover(place)
    if place.is_symlink() and not place.exists():
        raise CheckpointError(_lost(place, path, name))
    if not place.exists():
        raise CheckpointError(f"{name}={path}: there is no such checkpoint; runs keep theirs in FOLDER/checkpoints/")
    if place.is_file():  # strategies that share weights write folders
        with _named(name):
            check_is_data(place)
        if not is_zipfile(place):
            raise CheckpointError(
                f"{name}={path}: this file is not a checkpoint, or was cut short; give an earlier one"
            )
        with _named(name):
            read_file(place)
    elif sharded.is_sharded(place):
        with _named(name):
            sharded.check_whole(place)
    elif is_divided(place):
        _check_parts(place, name)
    elif (place / ".metadata").is_file():
        raise CheckpointError(
            f"{name}={path}: the index of this folder (.metadata, from save_distributed_checkpoint=true) is a pickle, "
            "which could run code and is not loaded; give another checkpoint"
        )
    else:
        raise CheckpointError(
            f"{name}={path}: this folder is not a checkpoint; give one, as FOLDER/checkpoints/last.ckpt"
        )


def saved_position(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds besides weights and optimizer: steps, loops, callbacks, rewards.

    Raises:
        CheckpointError: it is no checkpoint, or is damaged.
    """
    if not checkpoint.is_dir():
        state = read_file(checkpoint)
    elif sharded.is_sharded(checkpoint):
        state = sharded.read_position(checkpoint)
    else:
        files = sorted((checkpoint / ZERO_TAG).glob("*mp_rank_00_model_states.pt"))
        if not files:
            raise CheckpointError(f"{checkpoint} is not a checkpoint: neither a file nor a folder of parts")
        state = read_tensors(files[0])
    if not isinstance(state, dict) or "global_step" not in state:
        raise CheckpointError(f"{checkpoint} is not the checkpoint of a training run: it does not say at which step")
    return {name: value for name, value in state.items() if name not in HEAVY}


def with_new_optimizer(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint divided among ranks as the whole that Lightning expects of a file, without its optimizer."""
    return {**saved_position(checkpoint), "state_dict": saved_weights(checkpoint), "optimizer_states": []}


def load_policy_weights(policy: nn.Module, checkpoint: Path) -> None:
    """Puts a checkpoint's trained weights into a freshly built policy.

    Raises:
        CheckpointError: they belong to another model or adapter, are damaged, or hold NaN or infinity.
    """
    put_weights(policy, saved_weights(checkpoint), checkpoint)


def put_weights(policy: nn.Module, weights: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    """As `load_policy_weights`, of weights that were read from the checkpoint (`saved_weights`)."""
    own = {name.removeprefix(POLICY): value for name, value in weights.items()}
    check_fit(own, policy)
    with readable(checkpoint):
        check_finite(own.items(), str(checkpoint))
        policy.load_state_dict(own, strict=False)


def _check_parts(folder: Path, name: str) -> None:
    """Of DeepSpeed."""
    if not list((folder / ZERO_TAG).glob("*model_states.pt")):
        return  # whoever reads it says so
    for part in sorted((folder / ZERO_TAG).glob("*.pt")):
        with _named(name):
            check_is_data(part)
        if not is_zipfile(part):
            raise CheckpointError(f"{name}={folder}: its part {part.name} was cut short; give an earlier one")
    wanted = saved_position(folder).get("dp_world_size")
    if wanted is not None and wanted != saved_ranks(folder):
        raise CheckpointError(
            f"{name}={folder}: {saved_ranks(folder)} of the {wanted} parts of its optimizer are there; copy it whole, "
            "or give an earlier one"
        )


@contextlib.contextmanager
def _named(name: str) -> Any:
    """Says of an error which setting named the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}={error}") from error


def _lost(path: Path, shown: object, name: str = "ckpt_path") -> str:
    return (
        f"{name}={shown}: this is a link to {path.readlink()}, which is not there; copy that one too, or name another"
    )
