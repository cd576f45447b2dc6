"""A benchmark beside training: a small fixed subset of it, drawn and scored every so many steps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from egrpo import distributed
from egrpo.base.errors import UserError
from egrpo.benchmarks import Benchmark
from egrpo.benchmarks.export import manifest_of, requests_of
from egrpo.benchmarks.tracking import numbers
from egrpo.generation import DrawSettings, Request, batches, draw
from egrpo.training.settings import RolloutSettings

PREFIX = "val/benchmark/"
FILLER = Request("nothing", 0)  # drawn where a rank has fewer images than others, and thrown away


class BenchmarkScores(Callback):
    """Exports the benchmark's prompts into `benchmark/step_NNNNNN` of the run's folder, scores them, logs the scores.

    The images are those that `python -m egrpo.evaluate` draws of these prompts: they have their own random numbers, the
    same every time, and training does not depend on them.

    Args:
        benchmark: With a `limit`, or all of it is drawn every time.
        folder: Of the run.
        every_n_train_steps: Optimizer steps from one evaluation to the next, 0 = only before and after training; with
            several updates a rollout, the first rollout that ends at or after a multiple.
        batch_size: Images that a rank draws at once.
    """

    def __init__(self, benchmark: Benchmark, folder: str, every_n_train_steps: int = 50, batch_size: int = 32):
        if batch_size < 1 or every_n_train_steps < 0:
            raise UserError(
                f"callbacks.benchmark: batch_size={batch_size} must be at least 1, and "
                f"every_n_train_steps={every_n_train_steps} at least 0"
            )
        self.benchmark, self.folder = benchmark, Path(folder) / "benchmark"
        self.every, self.batch_size = every_n_train_steps, batch_size
        self.done_at: int | None = None  # optimizer step of the last evaluation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.benchmark.items()  # bad prompts are told before anything is drawn

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.global_step:
            self.evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if self.every and trainer.global_step % self.every < pl_module.objective.updates_per_rollout:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.done_at != trainer.global_step:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: Trainer, module: Any) -> None:
        """Draws on all ranks, scores on the first, logs."""
        self.done_at = trainer.global_step
        settings = draw_settings(module.validation.rollout, module.seed)
        with module.clock("benchmark"):
            images = self._drawn(module, settings)
            if not trainer.is_global_zero:
                return
            folder = self.folder / f"step_{trainer.global_step:06d}"
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
            items = self.benchmark.items()
            places = [(item, k) for item in items for k in range(len(item.files))]
            for (item, k), image in zip(places, images, strict=True):
                self.benchmark.write_image(folder, item, k, image)
            manifest = manifest_of(module.policy, settings, items, f"step {trainer.global_step} of this run")
            scores = replace(self.benchmark.score(folder), manifest=manifest)
            scores.save(folder)
        metrics = {PREFIX + name: value for name, value in numbers(scores).items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _drawn(self, module: Any, settings: DrawSettings) -> list[Image.Image]:
        """All images in order, on every rank; ranks draw equally many, in step."""
        requests = requests_of(self.benchmark.items())
        world = distributed.world_size()
        padded = [*requests, *[FILLER] * (-len(requests) % world)]
        policy = module.policy
        before = policy.decode_evenly, policy.decode_batch
        own: list[Image.Image] = []
        try:
            with module.engine.drawing():
                for part in batches(padded[distributed.rank() :: world], self.batch_size):
                    own += [picture.image for picture in draw(policy, part, settings, {})]
        finally:
            policy.decode_evenly, policy.decode_batch = before
        return interleaved(distributed.gather(own))[: len(requests)]


def draw_settings(rollout: RolloutSettings, seed: int) -> DrawSettings:
    """As validation draws."""
    names = ("cot", "cfg_weight", "temperature", "top_k", "top_p", "plan_top_k")
    return DrawSettings(seed, **{name: getattr(rollout, name) for name in names})


def interleaved(parts: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    """Parts [r::world] of a list, all of one length -> the list."""
    return [image for row in zip(*parts, strict=True) for image in row]
