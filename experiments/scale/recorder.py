"""A callback that writes down what a run's own metrics leave out: memory by phase and rank, checkpoints, weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

from egrpo import distributed
from egrpo.training.clock import Clock


class PhaseMemory(Clock):
    """The module's clock, which also keeps the allocator's peak within each phase, in 10^9 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, float] = {}

    def take_over(self, before: Clock) -> None:
        """Continues the totals of the clock that the run had until now."""
        self._total.update(before.total)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with super().__call__(phase):
            yield
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
            self.peaks[phase] = max(peak, self.peaks.get(phase, 0.0))


class Recorder(Callback):
    """Leaves `rank_R.json` (a file a rank, rewritten at every step) and, where asked, the trained weights.

    Args:
        folder: Where to.
        weights: Rank 0 also leaves `weights.safetensors`, whole, at the end of training.
        fraction: Of each card's memory that the run may use, to play a smaller card; None = all.
    """

    def __init__(self, folder: str, weights: bool = False, fraction: float | None = None) -> None:
        if fraction is not None and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(fraction, int(os.environ.get("LOCAL_RANK", 0)))
        self.folder, self.weights = Path(folder), weights
        self.memory = PhaseMemory()
        self.before = 0.0  # peak before the first step: loading, dividing, setting up
        self.after_steps: list[float] = []  # allocated after each step
        self.saves: list[float] = []  # seconds that training waited for each checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.before = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        self.memory.take_over(pl_module.clock)
        pl_module.clock = self.memory
        save = trainer.strategy.save_checkpoint

        def timed(*arguments: Any, **settings: Any) -> None:
            start = time.perf_counter()
            save(*arguments, **settings)
            self.saves.append(time.perf_counter() - start)
            self._write()

        trainer.strategy.save_checkpoint = timed  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        if torch.cuda.is_available():
            self.after_steps.append(torch.cuda.memory_allocated() / 1e9)
        self._write()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._write()
        if self.weights:
            found = {}
            for name, p in pl_module.policy.named_parameters():
                if p.requires_grad:
                    with pl_module.engine.gathered([p]) as (value,):
                        found[name] = value.detach().float().cpu().clone()
            if trainer.is_global_zero:
                save_file(found, self.folder / "weights.safetensors")

    def _write(self) -> None:
        found = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "before": self.before,
            "phases": self.memory.peaks,
            "after_steps": self.after_steps,
            "reserved": torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0,
            "saves": self.saves,
        }
        (self.folder / f"rank_{distributed.rank()}.json").write_text(json.dumps(found))
