"""Callbacks that watch a metric, such as the best checkpoint: they keep nothing where no metric has that name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from egrpo.base.errors import UserError
from egrpo.settings.check import nearest
from egrpo.training.validation import PART

OWN = ("step", "epoch")  # which Lightning knows at any time
BENCHMARK = "val/benchmark/"  # metrics of a callback, not of the validation


def validated_names(module: Any, data: Any) -> list[str]:
    """Names of all metrics that a validation of this run logs.

    Args:
        module: The LightningModule, with its rewards and judges.
        data: The data module, with its validation prompts.
    """
    scores = ["reward", *module.validation.judges, *(PART + name for name in module.rewards.rewards)]
    splits = dict.fromkeys(record.extra.get("split", "all") for record in data.val_records)
    return [f"val/{score}{end}" for score in scores for end in ("", *(f"/{split}" for split in splits))]


def check_monitors(callbacks: Iterable[Callback], known: Collection[str]) -> None:
    """Before anything is measured: that every watched metric of the validation exists.

    Raises:
        UserError: one does not; names the nearest, and all that there are.
    """
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        ours = isinstance(monitor, str) and monitor.startswith("val/") and not monitor.startswith(BENCHMARK)
        if ours and monitor not in known:
            raise _unknown(callback, str(monitor), known)


class FirstMetrics(Callback):
    """Checks the other watched metrics as soon as they would be there: after the first step, or the first validation.

    Raises:
        UserError: a callback watches a metric that was not logged.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._check(trainer, lambda name: name.startswith(("train/", "perf/")))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._check(trainer, lambda name: not name.startswith(("train/", "perf/", BENCHMARK)))

    def _check(self, trainer: Trainer, concerns: Any) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            watched = isinstance(monitor, str) and monitor not in OWN and concerns(monitor)
            if watched and monitor not in trainer.callback_metrics:
                raise _unknown(callback, str(monitor), list(trainer.callback_metrics))


def _unknown(callback: Callback, monitor: str, known: Collection[str]) -> UserError:
    hint = nearest(monitor, known)
    listed = "" if hint.startswith("choose") else f" (there is {', '.join(sorted(known))})"
    return UserError(f"{type(callback).__name__} watches monitor={monitor}, which no metric is called; {hint}{listed}")
