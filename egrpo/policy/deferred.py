"""Weights that stay in their files until a strategy has divided the model that will hold them.

A model built in `deferring()` has parameters without storage ("meta"). `fill` then reads, for every parameter, only
what this process keeps of it, so that no process ever holds a whole copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoConfig, JanusForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from egrpo.base.errors import UserError
from egrpo.tensor_files import CheckpointError, check_finite, readable

_deferring: ContextVar[bool] = ContextVar("deferring", default=False)


@contextmanager
def deferring() -> Iterator[None]:
    """Inside, models are built without their weights."""
    before = _deferring.set(True)
    try:
        yield
    finally:
        _deferring.reset(before)


def is_deferring() -> bool:
    return _deferring.get()


def empty_janus(path: str, dtype: Any, attn_implementation: str) -> Any:
    """The model of a native checkpoint with parameters on "meta" and real buffers.

    Raises:
        UserError: the checkpoint lacks weights.
    """
    config: Any = AutoConfig.from_pretrained(path)
    kind = config.dtype or torch.float32 if dtype == "auto" else dtype
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = JanusForConditionalGeneration._from_config(config, dtype=kind, attn_implementation=attn_implementation)
    model.config._name_or_path = path
    if missing := sorted(set(model.state_dict()) - set(weight_files(path))):
        raise UserError(f"the Janus checkpoint at {path} lacks {len(missing)} weights, {missing[0]} among them")
    return model.eval()


def weight_files(path: str) -> dict[str, Path]:
    """The safetensors file of each weight of a checkpoint, a folder or a name on the hub.

    Raises:
        UserError: the checkpoint has no safetensors files.
    """
    single, index = (
        cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        for name in ("model.safetensors", "model.safetensors.index.json")
    )
    if not single and not index:
        raise UserError(
            f"{path} has no weights in safetensors files, from which each process could read its part: "
            "save the model anew with transformers' save_pretrained"
        )
    found: dict[str, Path] = {}
    for file in [single] if single else get_checkpoint_shard_files(path, index)[0]:
        with readable(file), safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), Path(file))
    return found


def fill(part: nn.Module, keys: Mapping[str, str], files: Mapping[str, Path], device: torch.device) -> None:
    """Gives every parameter on "meta" this process's part of its weight.

    Args:
        part: Changed in place; its parameters may be divided (DTensor) already.
        keys: Parameter name -> name of the weight in the checkpoint.
        files: The checkpoint's, see `weight_files`.
        device: Where the weights go.
    """
    wanted: dict[Path, list[str]] = {}
    for name, parameter in part.named_parameters():
        if parameter.is_meta:
            wanted.setdefault(files[keys[name]], []).append(name)
    for file, names in wanted.items():
        with safe_open(file, framework="pt") as opened:
            for name in names:
                owner, _, attribute = name.rpartition(".")
                module = part.get_submodule(owner)
                empty: Any = getattr(module, attribute)
                weight = _own_part(opened.get_slice(keys[name]), empty, device)
                check_finite([(keys[name], weight.to_local() if isinstance(weight, DTensor) else weight)], str(file))
                module.register_parameter(attribute, nn.Parameter(weight, requires_grad=empty.requires_grad))


def _own_part(stored: Any, empty: Any, device: torch.device) -> Tensor:
    """What `empty` holds of a stored weight, read from the file."""
    if tuple(stored.get_shape()) != tuple(empty.shape):
        raise CheckpointError(
            f"a weight of the model has the shape {tuple(stored.get_shape())} in its file and {tuple(empty.shape)} by "
            "its config.json: fetch or convert the model again"
        )
    if not isinstance(empty, DTensor):
        return stored[:].to(device, empty.dtype)
    shape, start = compute_local_shape_and_global_offset(empty.shape, empty.device_mesh, empty.placements)
    local = stored[tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))]
    return DTensor.from_local(
        local.to(device, empty.dtype),
        empty.device_mesh,
        empty.placements,
        run_check=False,
        shape=empty.shape,
        stride=empty.stride(),
    )
