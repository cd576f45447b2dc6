"""A fault that configurations name."""

from __future__ import annotations

import signal
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, Trainer


class Fault(Callback):
    """Ends the runs of one seed with an error that says nothing to a user."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if module.seed == self.seed:
            raise IndexError(f"seed {self.seed} fails")


class LibraryFault(Callback):
    """Fails as a library would."""

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        raise ValueError("not enough values to unpack")


class Ending:
    """A reward that ends its process at one of its calls.

    Args:
        call: Counted from 1.
        how: A signal's name; or "exit", by sys.exit(0); or "exit_of_seed_0", where the sweep's job 0 does.
    """

    def __init__(self, call: int, how: str) -> None:
        self.call, self.how, self.calls = call, how, 0

    def __call__(self, images: list[Any], records: list[Any]) -> list[float]:
        self.calls += 1
        if self.calls == self.call:
            if self.how.startswith("SIG"):
                signal.raise_signal(getattr(signal, self.how))
            elif self.how == "exit" or HydraConfig.get().job.num == 0:
                sys.exit(0)
        return [0.5] * len(images)


def end_while_loading(**settings: Any) -> Any:
    """In place of what makes a model."""
    signal.raise_signal(signal.SIGTERM)
