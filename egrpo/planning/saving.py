"""What a checkpoint takes: bytes on disk, by strategy, and seconds to write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from egrpo.planning.standing import Parts, optimizer_state
from egrpo.planning.workload import Assumptions


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run.

    Args:
        weights: Bytes of the trained weights, in their own type.
        optimizer: Bytes of its states, float32 copies of the weights among them.
        best: Bytes of the best state, which is kept too; 0 where none is.
        staged: Bytes of it that pass through a device's host memory, of the device that has most.
        seconds: To write the last state, at the assumed rate of the disk.
    """

    weights: int
    optimizer: int
    best: int
    staged: int
    seconds: float

    @property
    def state(self) -> int:
        """Bytes of the last state, from which a run resumes."""
        return self.weights + self.optimizer


def saved(parts: Parts, callbacks: Any, assumed: Assumptions) -> Saved:
    """Of a run with these callbacks. Frozen weights and the reference are in no checkpoint."""
    weights, optimizer = parts.arch.trained_bytes, round(optimizer_state(parts))
    state = weights + optimizer
    best = callbacks.get("best") if isinstance(callbacks, DictConfig) else None
    alone = best is not None and bool(OmegaConf.select(best, "save_weights_only", default=False))
    devices = parts.sharding.devices if parts.sharding.optimizer > 1 else 1
    return Saved(
        weights=weights,
        optimizer=optimizer,
        best=0 if best is None else weights if alone else state,
        staged=-(-optimizer // devices) + weights,
        seconds=state / (1e9 * assumed.disk_gb_s),
    )
