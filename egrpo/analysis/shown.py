"""The images whose tokens are shown: the best and the worst of one prompt in every setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from egrpo.analysis.study import StudyDescription, TokenReader, TokenTable
from egrpo.analysis.style import COLUMN


@dataclass(frozen=True)
class Shown:
    """One setting's best and worst image of the prompt that figures show."""

    setting: str
    rows: list[pd.Series]  # best and worst by reward; one row where there is one image
    places: list[int]  # of these rows in `tokens`
    tokens: TokenTable
    rewards: np.ndarray  # [n] of all the prompt's images, rows as in `tokens`


def shown_prompt(records: pd.DataFrame, study: StudyDescription) -> int:
    """The prompt whose images differ most in reward in the baseline (the first setting there is, without it)."""
    names = [study.baseline, *study.settings]
    first = next(name for name in names if (records["setting"] == name).any())
    spread = records[records["setting"] == first].groupby("prompt_index")["reward"].std(ddof=0)
    return int(spread.idxmax())


def examples(records: pd.DataFrame, study: StudyDescription, tokens: TokenReader) -> list[Shown]:
    """The best and the worst image of the shown prompt in every setting that has drawn it."""
    prompt = shown_prompt(records, study)
    out = []
    for name in study.settings:
        rows = records[(records["setting"] == name) & (records["prompt_index"] == prompt)]
        if not len(rows):
            continue
        rows = rows.sort_values(["plan_index", "image_index"])
        rewards = rows["reward"].to_numpy(float)
        places = list(dict.fromkeys([int(rewards.argmax()), int(rewards.argmin())]))
        out.append(Shown(name, [rows.iloc[i] for i in places], places, tokens(name, prompt), rewards))
    return out


def grid_size(shown: Sequence[Shown]) -> tuple[float, float]:
    return COLUMN, 0.45 + 1.0 * max(1, len(shown))


def grid_of(tokens: int) -> tuple[int, int]:
    """Rows and columns of the image's tokens: a square, or the nearest to one that they fill."""
    rows = int(np.sqrt(tokens))
    while tokens % rows:
        rows -= 1
    return rows, tokens // rows


def _picture(axis: Axes, folder: Path, row: pd.Series) -> None:
    """The image itself, or its absence."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    path = folder / row["file"]
    if path.is_file():
        with Image.open(path) as picture:
            axis.imshow(picture.convert("RGB"), interpolation="nearest")
    else:
        axis.text(0.5, 0.5, "no file", ha="center", va="center", color="0.4", transform=axis.transAxes)
    axis.set_title(f"reward {row['reward']:.2f}", pad=2)


def token_map(axis: Axes, values: np.ndarray, **style: Any) -> Any:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    return axis.imshow(values.reshape(grid_of(values.size)), interpolation="nearest", **style)


def pairs(figure: Figure, folder: Path, shown: Sequence[Shown], draw: Callable[[Axes, Shown, int], Any]) -> Any:
    """Rows of settings: image and map of the best, image and map of the worst; returns the last map."""
    axes = figure.subplots(len(shown), 4, squeeze=False)
    last = None
    for line, one in zip(axes, shown, strict=True):
        line[0].set_ylabel(one.setting)
        for axis in line[2 * len(one.places) :]:
            axis.axis("off")
        for column, (row, place) in enumerate(zip(one.rows, one.places, strict=True)):
            _picture(line[2 * column], folder, row)
            last = draw(line[2 * column + 1], one, place)
    return last, axes
