"""Faults of one rank."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint


class Fault(Checkpoint):
    """Rank 1 fails at the end of a step, in the first attempt of its job.

    Args:
        step: After which optimizer step.
        killed: By SIGKILL instead of an exception.
    """

    def __init__(self, step: int, killed: bool) -> None:
        self.step, self.killed = step, killed

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if trainer.global_rank == 1 and trainer.global_step == self.step and first:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("rank 1 has had enough")
