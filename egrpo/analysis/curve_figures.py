"""Curves: entropy over the position of a token, reward and entropy over training steps."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egrpo.analysis.study import StudyDescription, TokenReader
from egrpo.analysis.style import COLUMN, Drawn, legend_outside, look, make

LEAST_SHARE = 0.1  # of the sequences must be as long as a position that is drawn
CURVES = (("train/reward", "reward"), ("train/entropy_image", "image entropy"), ("train/entropy_text", "plan entropy"))


def position(figures: Path, records: pd.DataFrame, study: StudyDescription, tokens: TokenReader | None) -> Drawn:
    about = Drawn(
        "position",
        "Entropy over the position of a token",
        "Mean over all sequences of a setting; of plans, as far as a tenth of them reaches.",
    )
    if tokens is None:
        return Drawn(about.name, about.title, about.caption, "the tokens were not at hand")
    curves: dict[str, dict[str, np.ndarray]] = {"plan token": {}, "image token": {}}
    for name in study.settings:
        prompts = sorted(records.loc[records["setting"] == name, "prompt_index"].unique())
        tables = [tokens(name, int(prompt)) for prompt in prompts]
        if not tables:
            continue
        images = [t.guided_entropy if study.entropy == "guided" else t.image_entropy for t in tables]
        curves["image token"][name] = mean_over([row for table in images for row in table])
        text = mean_over([row for table in tables for row in table.text_entropy])
        if len(text):
            curves["plan token"][name] = text
    told = {kind: lines for kind, lines in curves.items() if lines}

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(told), 1, squeeze=False)[:, 0]
        for axis, (kind, lines) in zip(axes, told.items(), strict=True):
            for name, line in lines.items():
                style = look(list(study.settings).index(name))
                axis.plot(np.arange(1, len(line) + 1), line, **{**style, "marker": None}, label=name)  # type: ignore[arg-type]
            axis.set(xlabel=kind, ylabel="mean entropy")
            axis.set_ylim(bottom=0)
        legend_outside(figure, axes[::-1], min(4, len(study.settings)))

    return make(figures, about, None if told else "there are no tokens", (COLUMN, 0.35 + 1.4 * len(told)), draw)


def mean_over(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Mean at each position over the sequences that reach it, as far as a tenth of the non-empty ones does."""
    sequences = [row for row in sequences if len(row)]
    longest = max((len(row) for row in sequences), default=0)
    total, count = np.zeros(longest), np.zeros(longest)
    for row in sequences:
        total[: len(row)] += row
        count[: len(row)] += 1
    return (total / count.clip(min=1))[count >= max(1.0, LEAST_SHARE * len(sequences))]


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of the curves in a run's metrics.csv; {} without the file."""
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {key: [(int(row["step"]), float(row[key])) for row in rows if row.get(key)] for key, _ in CURVES}
    return {key: points for key, points in told.items() if points}


def training(figures: Path, study: StudyDescription) -> Drawn:
    about = Drawn(
        "training",
        "Reward and entropy in training",
        "Means over each step's batch (faint) and over a running window of a tenth of the steps.",
    )
    runs = {name: read_curves(Path(run)) for name, run in study.runs.items() if run is not None}
    runs = {name: curves for name, curves in runs.items() if curves}

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(CURVES), 1, sharex=True)
        for axis, (key, label) in zip(axes, CURVES, strict=True):
            for name, curves in runs.items():
                style: Mapping[str, Any] = {**look(list(study.settings).index(name)), "marker": None}
                if key in curves:
                    steps, values = zip(*curves[key], strict=True)
                    axis.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.6)
                    smooth = pd.Series(values).rolling(max(1, len(values) // 10), center=True, min_periods=1).mean()
                    axis.plot(steps, smooth, label=name, **style)
            axis.set_ylabel(label)
        axes[-1].set_xlabel("optimizer step")
        legend_outside(figure, axes, 4)

    return make(figures, about, None if runs else "no setting names a training run", (COLUMN, 3.6), draw)
