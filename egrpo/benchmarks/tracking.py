"""Scores, table and curve in W&B, TensorBoard or another of Lightning's loggers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from egrpo.benchmarks.curve import points
from egrpo.benchmarks.results import Scores
from egrpo.benchmarks.table import Table


def numbers(scores: Scores) -> dict[str, float]:
    """ "BENCHMARK/CATEGORY/METHOD" -> score of every result and overall score, 0..1."""
    found = points({0: scores})
    return {f"{scores.benchmark}/{category}/{plain(method)}": score for _, category, method, score, _ in found}


def plain(name: str) -> str:
    """A method's name as a part of a metric's: "oracle, strictly right" -> "oracle_strictly_right"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def log_scores(
    loggers: Sequence[Logger], scores: Mapping[int, Scores], table: Table, settings: dict[str, Any], folder: Path
) -> None:
    """Writes one evaluation into every tracker and closes it.

    Args:
        loggers: As conf/logger gives them; others than W&B and TensorBoard get the numbers alone.
        scores: Step -> scores there.
        table: What is printed.
        settings: The resolved configuration.
        folder: Of the evaluation; its `curve.png` is shown, where there is one.
    """
    curve = folder / "curve.png"
    for logger in loggers:
        logger.log_hyperparams(settings)
        for step, found in sorted(scores.items()):
            logger.log_metrics({f"benchmark/{name}": value for name, value in numbers(found).items()}, step=step)
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, table, curve)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("benchmark/table", table.markdown(), 0)
            if curve.is_file():
                picture = np.asarray(Image.open(curve).convert("RGB"))
                logger.experiment.add_image("benchmark/curve", picture, 0, dataformats="HWC")
        logger.finalize("success")


def _to_wandb(logger: WandbLogger, table: Table, curve: Path) -> None:
    import wandb

    media: dict[str, Any] = {"benchmark/table": wandb.Table(list(table.header), data=[list(row) for row in table.rows])}
    media["benchmark/notes"] = wandb.Table(["note"], data=[[note] for note in table.notes])
    if curve.is_file():
        media["benchmark/curve"] = wandb.Image(str(curve))
    logger.experiment.log(media)
    logger.experiment.finish()
