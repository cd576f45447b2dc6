"""Callbacks of a training run: checkpoints, sample tables, the continued metrics file, plain progress."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger

from egrpo import distributed
from egrpo.atomic import link
from egrpo.base import stopping
from egrpo.images import caption, save_sheet, to_images
from egrpo.training.metrics_file import MetricsFile
from egrpo.training.saving import queue
from egrpo.types import PromptRecord, RewardTable, Rollout


class Kept(ModelCheckpoint):
    """Lightning's, with one copy of a state on the disk, and without a moment in which there is none.

    `last.ckpt` is a link to the newest state. What is replaced is removed after that, in the order in which checkpoints
    are written (`egrpo.training.saving`). A folder that was moved or copied keeps its place in the ranking.

    Args:
        save_optimizer: Whether the optimizer's state is kept too, which is several times the size of the weights; a run
            that resumes without it starts its optimizer anew.
        settings: As in Lightning; `save_last` true and "link" are the same.
    """

    def __init__(self, save_optimizer: bool = True, save_last: bool | str | None = None, **settings: Any):
        super().__init__(save_last="link" if save_last else save_last, **settings)  # type: ignore[arg-type]
        self.save_optimizer = save_optimizer
        self._saving = False
        self._replaced: list[str] = []

    @property
    def state_key(self) -> str:
        """That of Lightning's class, which earlier versions used for the best state."""
        return super().state_key.replace("Kept{", "ModelCheckpoint{", 1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._saving and not self.save_optimizer:
            checkpoint["optimizer_states"] = []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(moved(state_dict, str(self.dirpath)))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        if not self.save_last:
            self._remove_replaced(trainer)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._remove_replaced(trainer)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._replaced.append(filepath)

    def _remove_replaced(self, trainer: Trainer) -> None:
        while self._replaced:
            super()._remove_checkpoint(trainer, self._replaced.pop())

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero:
            queue.run(partial(link, Path(filepath), Path(linkpath)))
        trainer.strategy.barrier()


def moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """The state of a `ModelCheckpoint` whose folder has another place now, of those of its files that are there."""
    old = state.get("dirpath")
    if old is None or old == folder:
        return state

    def new(path: str) -> str:
        place = Path(folder) / Path(path).name
        return str(place) if path and place.exists() else ""

    best = {new(path): score for path, score in state["best_k_models"].items() if new(path)}
    if len(best) < len(state["best_k_models"]):
        return state  # this is another run, which began with that one's checkpoint
    paths = {name: new(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    return {**state, **paths, "dirpath": folder, "best_k_models": best}


class Checkpoint(Kept):
    """Keeps the last state for resuming, saved when all of its step is done, and at the end of training.

    Lightning saves before the validation of the same step, which a run killed in between would lose on resume. List
    this after callbacks whose state depends on validation.

    Args:
        every_n_train_steps: Optimizer steps from one checkpoint to the next, 0 = only at the end; with several updates
            a rollout, the first rollout that ends at or after a multiple.
        settings: As in `Kept`.
    """

    def __init__(self, every_n_train_steps: int, **settings: Any):
        super().__init__(every_n_train_steps=every_n_train_steps, **settings)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        queue.raise_error()  # of the background: soon, not only at the next checkpoint
        every, updates = self._every_n_train_steps, pl_module.objective.updates_per_rollout
        if every < 1 or trainer.global_step % every >= updates or self._should_skip_saving_checkpoint(trainer):
            return
        loop = trainer.fit_loop
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            self._defer_save_until_validation = True  # on_validation_end saves
        else:
            self._save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_now(trainer)

    def _save_now(self, trainer: Trainer) -> None:
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)


class SampleTable(Callback):
    """Shows what the policy draws: a sheet in `samples/`, and a table in W&B where it is the logger.

    Args:
        folder: Of the run.
        every_n_train_steps: Steps from one table to the next; 0 = none.
        num_samples: Samples shown, whole groups first.
    """

    def __init__(self, folder: str, every_n_train_steps: int = 20, num_samples: int = 16):
        self.folder, self.every, self.num_samples = Path(folder), every_n_train_steps, num_samples

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        updates = pl_module.objective.updates_per_rollout
        if self.every < 1 or trainer.global_step % self.every >= updates:
            return
        rows = self._first_rows(*pl_module.last_rollout)
        if not trainer.is_global_zero:
            return
        save_sheet(
            self.folder / "samples" / f"step_{trainer.global_step:06d}.png",
            [np.asarray(image) for _, _, image, _ in rows],
            [caption(prompt, [f"reward {reward:.2f}"]) for prompt, _, _, reward in rows],
            f"Training samples at step {trainer.global_step}",
            columns=8,
        )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                data = [[prompt, plan, wandb.Image(image), reward] for prompt, plan, image, reward in rows]
                logger.log_table("train/samples", columns=["prompt", "plan", "image", "reward"], data=data)

    def _first_rows(self, records: list[PromptRecord], rollout: Rollout, table: RewardTable) -> list[list[Any]]:
        """Prompt, plan, image and reward of the first samples of the step, over all ranks."""
        first = distributed.rank() * len(records)
        chosen = range(max(0, min(self.num_samples - first, len(records))))
        images, totals = to_images(rollout.pixels[: len(chosen)]), table.total.tolist()
        own = [[records[i].prompt, rollout.plans[i], images[i], totals[i]] for i in chosen]
        return [row for part in distributed.gather(own) for row in part]


class StopSignals(Callback):
    """Ctrl-C and SIGTERM end the run at once (see `egrpo.base.stopping`), and not as Lightning would have it."""

    def on_train_start(self, *args: Any) -> None:
        stopping.take_back()

    def on_validation_start(self, *args: Any) -> None:
        stopping.take_back()

    def on_train_batch_start(self, *args: Any) -> None:
        stopping.check()

    def on_validation_batch_start(self, *args: Any) -> None:
        stopping.check()


class ContinueMetricsFile(Callback):
    """Tells the metrics file where a resumed run goes on."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.global_step:
                logger.continue_from(trainer.global_step)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the metrics' short names and without the version number."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in items.items()}
