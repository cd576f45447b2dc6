"""Files of tensors, read without running anything that is in them, and one sentence for each that cannot be read.

Whatever in the project reads weights, a checkpoint or its position goes through here, libraries that call `torch.load`
themselves included (`weights_only`).
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.serialization import config as serialization

from egrpo.base.errors import UserError

LFS = b"version https://git-lfs.github.com/spec/"  # how a pointer of git LFS begins
WEIGHT_FILES = ("*.safetensors", "*.bin")  # of a model's folder
BLOCK = 2**26  # numbers looked at once for one that is not finite
# Classes that DeepSpeed's checkpoints hold besides tensors and plain Python types; none runs code when it is loaded.
ALLOWED = {
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
}


class CheckpointError(UserError):
    """A checkpoint or a file of weights cannot be used; the message says which and why."""


def read_tensors(path: Path) -> Any:
    """What a file holds: .safetensors, or what torch saved, of which tensors and plain Python types alone are read.

    Tensors are mapped into memory: what is not used is not read.

    Raises:
        CheckpointError: the file is missing, damaged, a pointer of git LFS, or holds other things than data.
    """
    with readable(path):
        check_is_data(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))


def check_is_data(path: Path) -> None:
    """Raises CheckpointError for a file that is missing, empty, or only git LFS's pointer to the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not there, or is not a file")
    with path.open("rb") as file:
        start = file.read(len(LFS))
    if not start:
        raise CheckpointError(f"{path} is empty; it cannot be read as a checkpoint of tensors")
    if start == LFS:
        raise CheckpointError(
            f"{path} is a git LFS pointer, not the file that it stands for, so it cannot be read: fetch that with "
            "git lfs pull, or download it again"
        )


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turns whatever a library raises while it reads a damaged file into one sentence.

    Raises:
        CheckpointError: the file or folder cannot be read.
    """
    try:
        yield
    except (CheckpointError, MemoryError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        # torch's message goes on to explain how to run such code.
        raise CheckpointError(f"{path} holds other things than tensors, or is cut off; it is not loaded") from error
    except Exception as error:  # broken files raise errors of a dozen types
        reason = str(error).splitlines()[:1] or ["it is cut off"]
        raise CheckpointError(f"{path} cannot be read as a checkpoint of tensors: {reason[0]}") from error


def check_model_folder(folder: Path) -> None:
    """Raises CheckpointError where a folder's config.json is no JSON object, or a file of its weights is no data.

    Nothing is said of a folder that is not there: it may be a name on the hub.
    """
    if not folder.is_dir():
        return
    config = folder / "config.json"
    if config.is_file():
        check_is_data(config)
        try:
            fault = "" if isinstance(json.loads(config.read_text()), dict) else "it holds no settings by name"
        except ValueError as error:
            fault = str(error)
        if fault:
            raise CheckpointError(f"{config} is damaged, or not a model's: {fault}; fetch or convert the model again")
    for path in (path for pattern in WEIGHT_FILES for path in sorted(folder.glob(pattern))):
        check_is_data(path)


@contextmanager
def loading_model(path: Path | str) -> Iterator[None]:
    """Around a load by transformers: damaged files and other shapes become one sentence.

    Raises:
        CheckpointError: the weights at `path` cannot be read, or do not fit their config.json.
    """
    check_model_folder(Path(path))
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckpointError(
            f"the weights in {path} have other shapes than its config.json says: fetch or convert the model again"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, KeyError, EOFError) as error:
        with readable(path):
            raise error


@contextmanager
def weights_only(mapped: bool = False) -> Iterator[None]:
    """Inside, `torch.load` reads data alone, whoever calls it and whatever they ask for.

    The classes in `ALLOWED` are read too, where DeepSpeed has been imported.

    Args:
        mapped: Whether files are mapped into memory, which needs their paths and tensors on the CPU.
    """
    name, mmap = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", serialization.load.mmap
    before = os.environ.get(name)
    with torch.serialization.safe_globals(_allowed()):
        os.environ[name], serialization.load.mmap = "1", mapped
        try:
            yield
        finally:
            serialization.load.mmap = mmap
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises CheckpointError, naming the tensor and `where` it is, if one holds NaN or infinity."""
    for name, whole in tensors:
        tensor = getattr(whole, "ds_tensor", whole)  # this rank's part of what DeepSpeed divides
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        for part in tensor.detach().reshape(-1).split(BLOCK):
            # A sum is a fraction of the work; it can also be infinite because it is large.
            if bool(part.sum(dtype=torch.float32).isfinite()) or bool(part.isfinite().all()):
                continue
            raise CheckpointError(
                f"{where}: the tensor {name} holds NaN or infinity, so nothing can be done with these weights; use "
                "an earlier checkpoint, or fetch the file again"
            )


def _allowed() -> list[Any]:
    found: list[Any] = []
    if "deepspeed" not in sys.modules:
        return found
    for module, names in ALLOWED.items():
        try:
            found += [getattr(import_module(module), name) for name in names]
        except (ImportError, AttributeError):  # a version of DeepSpeed that saves no such thing
            continue
    return found
