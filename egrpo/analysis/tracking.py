"""A finished study in W&B or TensorBoard: its table, samples, figures and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

SAMPLES = 96  # images in the table of samples
SHOWN = ("setting", "task_type", "prompt", "plan", "reward", "image_entropy_mean", "image_entropy_std")


def log_study(loggers: Sequence[Logger], folder: Path, records: pd.DataFrame, statistics: dict[str, Any]) -> None:
    """Writes the study once into each tracker.

    Args:
        loggers: As conf/logger gives them; others than W&B and TensorBoard get the numbers alone.
        folder: Of the study, with its figures and report.
        records: One row an image.
        statistics: What `statistics.json` holds.
    """
    numbers = flat_numbers(statistics)
    figures = sorted((folder / "figures").glob("*.png"))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, folder, records, numbers, figures)
            continue
        logger.log_metrics({f"study/{name}": value for name, value in numbers.items()}, step=0)
        if isinstance(logger, TensorBoardLogger):
            for path in figures:
                picture = np.asarray(Image.open(path).convert("RGB"))
                logger.experiment.add_image(f"study/{path.stem}", picture, 0, dataformats="HWC")
        logger.finalize("success")


def flat_numbers(node: Any, name: str = "") -> dict[str, float]:
    """Every finite number of nested mappings and lists, by the keys and positions above it: "a/b/0"."""
    if isinstance(node, dict):
        children = [(str(key), child) for key, child in node.items()]
    elif isinstance(node, (list, tuple)):
        children = [(str(at), child) for at, child in enumerate(node)]
    else:
        told = isinstance(node, (int, float)) and not isinstance(node, bool) and math.isfinite(node)
        return {name: float(node)} if told else {}
    return {k: v for key, child in children for k, v in flat_numbers(child, f"{name}/{key}".lstrip("/")).items()}


def sample_rows(records: pd.DataFrame, count: int = SAMPLES) -> pd.DataFrame:
    """At most `count` rows, spread evenly over the table."""
    return records.iloc[np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))]


def _to_wandb(
    logger: WandbLogger, folder: Path, records: pd.DataFrame, numbers: dict[str, float], figures: list[Path]
) -> None:
    import wandb

    chosen = sample_rows(records)
    rows = [[wandb.Image(str(folder / row["file"])), *(row[name] for name in SHOWN)] for _, row in chosen.iterrows()]
    media: dict[str, Any] = {f"study/figures/{path.stem}": wandb.Image(str(path)) for path in figures}
    media["study/samples"] = wandb.Table(columns=["image", *SHOWN], data=rows)
    media["study/records"] = wandb.Table(dataframe=records)
    if (folder / "report.html").is_file():
        media["study/report"] = wandb.Html(str(folder / "report.html"))
    run = logger.experiment
    run.log(media)
    run.summary.update({f"study/{name}": value for name, value in numbers.items()})
    run.finish()
