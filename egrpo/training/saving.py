"""Writing checkpoints: whole or not at all, large ones while training continues, and no error lost.

A checkpoint that is large, and for which the host has memory, is copied there and written by a thread. What follows
from it (its link `last.ckpt`, the removal of an older one) waits for it in the same queue.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

from egrpo import sharded
from egrpo.atomic import beside, discard, discard_parts, put_in_place, sync
from egrpo.tensor_files import CheckpointError

IN_BACKGROUND = 2**30  # bytes from which on a rank's part is written in the background
COPIERS = 4  # threads that copy a state to the host, where making its pages takes longer than the copy
SPARE = 1.1  # memory that must be left, in sizes of the state
PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor, torch.Size, torch.dtype, torch.device)


class Queue:
    """Tasks on a run's checkpoints, one after another in the order given; after one that failed the others are dropped.

    Every rank has its own.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []
        self._error: BaseException | None = None

    def run(self, task: Callable[[], None], background: bool = False) -> None:
        """Does a task, at once if it may not be done in the background and nothing is left to wait for.

        Raises:
            Exception: that of the task, or of an earlier one.
        """
        self.raise_error()
        self._waiting = [future for future in self._waiting if not future.done()]
        if not background and not self._waiting:
            task()
            return
        self._thread = self._thread or ThreadPoolExecutor(1, "checkpoint")
        self._waiting.append(self._thread.submit(self._do, task))

    def wait(self, failing: bool = True) -> None:
        """Returns when all is done.

        Args:
            failing: Raise the error of a task that failed; else forget it, where another error ends the run.
        """
        for future in self._waiting:
            future.result()
        self._waiting = []
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None  # none is left idle: a process that is forked would wait for it in vain
        if failing:
            self.raise_error()
        self._error = None

    def raise_error(self) -> None:
        """Raises the error of a task that failed in the background, once."""
        error, self._error = self._error, None
        if error is not None:
            self._waiting = []
            raise error

    def _do(self, task: Callable[[], None]) -> None:
        if self._error is None:
            try:
                task()
            except BaseException as error:
                self._error = error


queue = Queue()


def save_file(checkpoint: Mapping[str, Any], path: Path, background_from: float) -> None:
    """Writes a checkpoint into one file.

    Args:
        background_from: Bytes from which on it is done in the background.
    """
    queue.wait()
    checkpoint = plain(checkpoint)
    background = may_wait(pytree.tree_leaves(checkpoint), background_from)
    task = partial(_write_file, on_host(checkpoint) if background else checkpoint, path)
    queue.run(task, background)


def save_parts(
    tensors: Mapping[str, Mapping[str, Any]],
    position: Mapping[str, Any],
    path: Path,
    group: Any,
    background_from: float,
) -> None:
    """Writes a checkpoint of which every rank has its part into a folder (`egrpo.sharded`); all ranks call it.

    Args:
        tensors: Name of a part ("weights") -> tensors by name, divided or whole; names are the same on all ranks.
        position: Everything else; that of rank 0 is kept.
        group: Of gloo, for nothing else, for the background has its own order of operations; None for one process.
    """
    queue.wait()
    position = plain(position)
    background = may_wait([t for part in tensors.values() for t in part.values()], background_from)
    task = partial(_write_parts, on_host(tensors) if background else tensors, position, path, group)
    queue.run(task, background)


def may_wait(tensors: list[Any], background_from: float) -> bool:
    """Whether this rank's tensors are worth a copy on the host, and the memory is there on every rank of its node."""
    size = sum(local(tensor).nbytes for tensor in tensors if isinstance(tensor, Tensor))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return size >= background_from and host_memory_left() > SPARE * size * ranks


def host_memory_left() -> int:
    """Bytes that processes can still have: of the machine, or of the container where that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        place = Path("/sys/fs/cgroup")
        used = int((place / "memory.current").read_text()) - _reclaimable(place / "memory.stat")
        left = min(left, int((place / "memory.max").read_text()) - used)
    return left


def on_host(tree: Any) -> Any:
    """Copies of all tensors on the CPU; divided ones stay divided."""
    leaves, structure = pytree.tree_flatten(tree)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    with ThreadPoolExecutor(COPIERS) as copiers:
        return pytree.tree_unflatten(list(copiers.map(_copied, leaves)), structure)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def plain(value: Any, where: str = "") -> Any:
    """The same of types that are loaded without running code; numbers of numpy and paths become Python's.

    Raises:
        CheckpointError: something is of another type; the message says where.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    if type(value) in PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(plain(entry, f"{where}[{at}]") for at, entry in enumerate(value))
    raise CheckpointError(
        f"the checkpoint's entry {where.lstrip('.')} is of type {type(value).__name__}, which could not be loaded "
        "without running code: let the callback keep plain Python types and tensors as its state"
    )


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    copy = torch.empty_like(local(value), device="cpu").copy_(local(value).detach())
    if not isinstance(value, DTensor):
        return copy
    return DTensor(copy, value._spec, requires_grad=False)  # from_local would move it back to the device of its mesh


def _write_file(checkpoint: Mapping[str, Any], path: Path) -> None:
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        discard_parts(path.parent)
        torch.save(dict(checkpoint), beside(path))
        sync(beside(path))
        put_in_place(path)


def _write_parts(tensors: Mapping[str, Mapping[str, Any]], position: Mapping[str, Any], path: Path, group: Any) -> None:
    part, first, ranks = beside(path), dist.get_rank(group) == 0, dist.get_world_size(group)

    def begin() -> None:
        discard_parts(path.parent)
        part.mkdir(parents=True)

    def end() -> None:
        sharded.write_rest(part, position, ranks)
        sync(part)
        put_in_place(path)

    with _explained(path):
        _by_first(begin, first, group)
        for name, entries in tensors.items():
            sharded.write_parts(part, name, entries, group)
        _by_first(end, first, group)


def _by_first(task: Callable[[], None], first: bool, group: Any) -> None:
    """A task of rank 0, for which the others wait; if it fails, it fails on all."""
    error: list[Any] = [None]
    if first:
        try:
            task()
        except Exception as failure:
            error = [str(failure)]
    dist.broadcast_object_list(error, group_src=0, group=group)
    if error[0] is not None:
        raise CheckpointError(error[0])


@contextlib.contextmanager
def _explained(path: Path) -> Any:
    """Says of an error of writing which checkpoint it was, and what is left."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # what was written is of no use, and the disk may be full
            discard(beside(path))
        raise CheckpointError(
            f"the checkpoint {path} could not be written: {error}; the one before it is whole: make room, and resume "
            "from it with ckpt_path=..."
        ) from error


def _reclaimable(stat: Path) -> int:
    """Bytes of a control group's memory that only cache files."""
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(fields.get("inactive_file", 0))
