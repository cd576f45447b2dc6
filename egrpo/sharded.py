"""The checkpoint of FSDP2: a folder in which every rank has written its own part of weights and optimizer.

    index.json   how many ranks wrote it, and the size of every file
    position.pt  steps, loops, callbacks, rewards, settings of the optimizer: plain Python types and small tensors
    weights/     safetensors files of torch.distributed.checkpoint: the part of each rank, with its offsets
    optimizer/   likewise, "GROUP.PARAMETER.STATE"; absent where it was not asked for

Nothing in it is a pickle of objects, and any number of ranks reads what it needs of any number of ranks' parts.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from egrpo.tensor_files import CheckpointError, check_is_data, read_tensors, readable

INDEX, POSITION, WEIGHTS, OPTIMIZER = "index.json", "position.pt", "weights", "optimizer"
FORMAT = 1
OPTIMIZERS = "optimizers"  # entry of the position: what is no tensor in them
FILE_BYTES = 2**31  # of a rank's files, which are made in memory one at a time
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")  # settings of an optimizer that devices decide


def is_sharded(path: Path) -> bool:
    """Whether a path is such a folder."""
    return (path / INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """{"format", "ranks", "files": {relative path: bytes}}.

    Raises:
        CheckpointError: it is damaged, or of a later version.
    """
    path = folder / INDEX
    with readable(path):
        check_is_data(path)
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise CheckpointError(f"{folder} was written by a later version of egrpo (format {index['format']})")
        return {"ranks": int(index["ranks"]), "files": dict(index["files"])}


def check_whole(folder: Path) -> None:
    """Raises CheckpointError where a file of the folder is missing or has another size than when it was written."""
    for name, size in read_index(folder)["files"].items():
        path = folder / name
        check_is_data(path)
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path} was cut short or changed ({path.stat().st_size} of {size} bytes); give an earlier checkpoint"
            )


def read_position(folder: Path) -> dict[str, Any]:
    """What the folder holds besides tensors of weights and optimizer."""
    check_whole(folder)
    state: dict[str, Any] = read_tensors(folder / POSITION)
    return {name: value for name, value in state.items() if name != OPTIMIZERS}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The whole weights, on the CPU."""
    check_whole(folder)
    return _read_whole(folder / WEIGHTS)


def has_optimizer(folder: Path) -> bool:
    """Whether the state of the optimizer was saved."""
    return (folder / OPTIMIZER).is_dir()


def weight_shapes(folder: Path) -> dict[str, Any]:
    """Name -> description with `shape` of each saved weight, from the headers of the files."""
    return {name: torch.empty(entry.size, device="meta") for name, entry in _entries(folder / WEIGHTS).items()}


def write_parts(folder: Path, part: str, tensors: Mapping[str, Any], group: Any) -> None:
    """Writes this rank's part of divided tensors; all ranks call it, with the same names.

    Raises:
        CheckpointError: a rank could not write.
    """
    files, size, number = {}, 0, 1
    for name, tensor in tensors.items():
        own = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes
        if size and size + own > FILE_BYTES:
            size, number = 0, number + 1
        files[name], size = number, size + own
    writer = HuggingFaceStorageWriter(str(folder / part), fqn_to_index_mapping=files, save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise CheckpointError(str(reason)) from error


def write_rest(folder: Path, position: Mapping[str, Any], ranks: int) -> None:
    """Writes position and index, when all parts are there."""
    torch.save(dict(position), folder / POSITION)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "ranks": ranks, "files": sizes}, indent=1))


def load_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Fills parameters, divided as they are among the ranks, each rank from the files that hold its part."""
    with readable(folder):
        _load(folder / WEIGHTS, {name: parameter.detach() for name, parameter in parameters.items()})


def optimizer_tensors(optimizer: torch.optim.Optimizer, number: int, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Every tensor of an optimizer's state: "NUMBER.PARAMETER.STATE" -> tensor, divided as it is.

    Args:
        number: Of the optimizer.
        names: id of a parameter -> its name.
    """
    return {
        f"{number}.{names[id(p)]}.{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def optimizer_position(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """What an optimizer has that is no tensor: the settings of its groups, and some states."""
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    plain = {
        names[id(p)]: {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        for p, state in optimizer.state.items()
    }
    return {"groups": groups, "plain": {name: state for name, state in plain.items() if state}}


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, number: int, names: Mapping[int, str]) -> None:
    """Restores an optimizer, whose states are divided as its parameters are, from parts of any number of ranks.

    Args:
        optimizer: Changed in place; its groups must be those of the run that saved it.
        number, names: As in `optimizer_tensors`.

    Raises:
        CheckpointError: it was saved for other parameters.
    """
    with readable(folder):
        saved = read_tensors(folder / POSITION)[OPTIMIZERS][number]
        entries = _entries(folder / OPTIMIZER)
    states: dict[str, Tensor] = {}
    own_names = [[names[id(p)] for p in group_now["params"]] for group_now in optimizer.param_groups]
    if own_names != [group_saved["params"] for group_saved in saved["groups"]]:
        raise CheckpointError(f"{folder} holds the optimizer of other weights; use the model it was trained with")
    for group_now, group_saved, own in zip(optimizer.param_groups, saved["groups"], own_names, strict=True):
        group_now.update({k: v for k, v in group_saved.items() if k != "params" and k not in IMPLEMENTATION})
        for name, p in zip(own, group_now["params"], strict=True):
            start = f"{number}.{name}."
            for full, entry in _below(entries, start):
                value = _empty_state(p, entry, on_device=bool(group_now.get("fused") or group_now.get("capturable")))
                states[full] = value
                optimizer.state[p][full[len(start) :]] = value
            optimizer.state[p].update(saved["plain"].get(name, {}))
    with readable(folder):
        _load(folder / OPTIMIZER, states)


def _below(entries: Mapping[str, Any], start: str) -> Iterator[tuple[str, Any]]:
    """Entries of one parameter: their names go on with that of the state, which has no dots."""
    return (
        (name, entry) for name, entry in entries.items() if name.startswith(start) and "." not in name[len(start) :]
    )


def _empty_state(parameter: nn.Parameter, entry: Any, on_device: bool) -> Tensor:
    """A state to load into: divided as the parameter where it has its shape; a step count lies where torch has it."""
    if entry.size == parameter.shape:
        return torch.empty_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
    device = parameter.device if on_device or entry.size != torch.Size([]) else "cpu"
    return torch.empty(entry.size, dtype=entry.properties.dtype, device=device)


def _entries(part: Path) -> dict[str, Any]:
    return HuggingFaceStorageReader(str(part)).read_metadata().state_dict_metadata


def _read_whole(part: Path) -> dict[str, Tensor]:
    with readable(part.parent):
        found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in _entries(part).items()}
        _load(part, found)
    return found


def _load(part: Path, tensors: Mapping[str, Any]) -> None:
    """Each process for itself: what it needs follows from the files alone."""
    with _quiet(), torch.no_grad():
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(part)), no_dist=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to (load|save).*")
        yield
