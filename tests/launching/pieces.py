"""A fault that configurations name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class Fault(Callback):
    """Ends the runs of one seed with an error that says nothing to a user."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if module.seed == self.seed:
            raise IndexError(f"seed {self.seed} fails")
