"""What a checkpoint takes: bytes on disk, by strategy, and seconds to write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from egrpo.planning.standing import Parts, optimizer_state
from egrpo.planning.workload import Assumptions
from egrpo.training.saving import IN_BACKGROUND


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run.

    Args:
        weights: Bytes of the trained weights, in their own type.
        optimizer: Bytes of its states, float32 copies of the weights among them.
        best: Bytes of the best state, which is kept too; 0 where none is.
        staged: Bytes that a process copies to the host's memory, from which they are written while training continues;
            0 where training waits for the disk.
        seconds: To write the last state, at the assumed rate of the disk.
        waiting: Of these, how long training waits.
    """

    weights: int
    optimizer: int
    best: int
    staged: int
    seconds: float
    waiting: float

    @property
    def state(self) -> int:
        """Bytes of the last state, from which a run resumes."""
        return self.weights + self.optimizer


def saved(parts: Parts, callbacks: Any, assumed: Assumptions) -> Saved:
    """Of a run with these callbacks. Frozen weights and the reference are in no checkpoint."""
    weights, optimizer = parts.arch.trained_bytes, round(optimizer_state(parts))
    state, sharding = weights + optimizer, parts.sharding
    best = callbacks.get("best") if isinstance(callbacks, DictConfig) else None
    whole = best is not None and bool(best.get("save_optimizer", False))
    own = -(-state // sharding.devices) if sharding.by_layer else state  # one process writes what all have
    staged = own if own >= IN_BACKGROUND and not sharding.stage else 0  # DeepSpeed writes at once
    seconds = state / (1e9 * assumed.disk_gb_s)
    return Saved(
        weights=weights,
        optimizer=optimizer,
        best=0 if best is None else state if whole else weights,
        staged=staged,
        seconds=seconds,
        waiting=staged / (1e9 * assumed.host_link_gb_s) if staged else seconds,
    )
