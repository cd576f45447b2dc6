"""Bytes of all tensors of a training process, phase by phase, on a CPU: what an accelerator's allocator would count."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egrpo import distributed
from egrpo.training.clock import Clock

SMALL = 2**12  # bytes: storages below are not counted


class Alive(TorchDispatchMode):
    """Within the block, the most bytes that storages have at one time, those that were there before among them.

    FSDP2 empties storages that stay, so sizes are read anew whenever one is made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref[Any]] = {}
        self.peak = 0
        for tensor in tensors():
            self._add(tensor)
        self._look()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        made = [self._add(tensor) for tensor in tree_leaves((out, args)) if isinstance(tensor, Tensor)]
        if True in made:
            self._look()
        return out

    def _add(self, tensor: Tensor) -> bool:
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        if tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter):
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        if storage.nbytes() < SMALL or key in self.storages:
            return False
        self.storages[key] = weakref.ref(storage, lambda _: self.storages.pop(key, None))
        return True

    def _look(self) -> None:
        alive = [storage() for storage in list(self.storages.values())]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive if storage is not None))


def tensors() -> list[Tensor]:
    """All that Python knows of, and their gradients."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return found + [t.grad for t in found if t.is_leaf and t.grad is not None]


class AliveClock(Clock):
    """A module's clock that keeps peaks."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with super().__call__(phase), Alive() as alive:
            yield
        self.peaks[phase] = max(alive.peak, self.peaks.get(phase, 0))


class AliveRecorder(Callback):
    """Leaves `alive_R.json`: peaks by phase of rank R, and what was there before the first step."""

    def __init__(self, folder: str) -> None:
        self.folder, self.clock = Path(folder), AliveClock()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.peaks["before"] = Alive().peak
        pl_module.clock = self.clock

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"alive_{distributed.rank()}.json").write_text(json.dumps(self.clock.peaks))
