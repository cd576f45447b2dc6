"""Figures of a study: results with intervals, curves with bands, judge beside reward, a map of two varied numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egrpo.analysis.resampling import Bootstrap
from egrpo.analysis.style import COLOURS, COLUMN, colour, legend_outside, look, save, zero_line
from egrpo.studies.compare import Over
from egrpo.studies.runs import FINISHED, Run

TOGETHER = len(COLOURS)  # settings whose curves can still be told apart in one panel
PANELS = 4  # in a row
ABREAST = 20  # letters of a setting's name, up to which two stand side by side in a legend


def draw_all(
    folder: Path,
    runs: Mapping[str, Sequence[Run]],
    table: pd.DataFrame,
    compared: Mapping[str, Any],
    told: Mapping[str, Any],
) -> list[str]:
    """Draws what the study has; returns the names of the figures.

    Args:
        folder: Gets NAME.png and NAME.pdf.
        runs: Finished runs by setting.
        table: As `run_table` gives it.
        compared: As `compare` gives it.
        told: baseline, judge, curves (names of metrics), proxy (the metric drawn beside the judge), bootstrap.
    """
    judge, baseline, bootstrap = told["judge"], told["baseline"], told["bootstrap"]
    drawn = ["intervals"]
    height = 0.6 + 0.22 * len(compared)
    save(folder, "intervals", (2 * COLUMN, height), lambda f: _intervals(f, table, compared, baseline, judge))
    for metric in told["curves"]:
        bands = {name: band(part, metric, bootstrap) for name, part in runs.items()}
        bands = {name: part for name, part in bands.items() if len(part) > 1}
        if bands:
            drawn.append(f"curve_{metric.replace('/', '_')}")
            save(folder, drawn[-1], _size(bands), lambda f, b=bands, m=metric: _curves(f, b, baseline, m))  # type: ignore[misc]
    beside = {
        name: (band(part, f"val/{judge}", bootstrap), band(part, told["proxy"], bootstrap))
        for name, part in runs.items()
    }
    beside = {name: pair for name, pair in beside.items() if min(map(len, pair)) > 1}
    if beside:
        drawn.append("judge_and_reward")
        names = (f"val/{judge}", told["proxy"])
        save(folder, drawn[-1], _size(beside, TOGETHER), lambda f: _beside(f, beside, names))
    grid = grid_of(table, judge)
    if grid is not None:
        drawn.append("map")
        save(folder, "map", (COLUMN, 0.75 * COLUMN), lambda f: _map(f, grid, judge))
    return drawn


def band(runs: Sequence[Run], metric: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Mean and 95 % interval over runs at each step: columns mean, low, high; empty where no run has the metric.

    Training metrics, which each step measures on other prompts, are averaged over ten steps first.
    """
    columns = [run.curves[metric].dropna() for run in runs if metric in run.curves]
    if metric.startswith("train/"):
        columns = [c.groupby(((c.index - 1) // 10 + 1) * 10).mean() for c in columns]
    if not columns:
        return pd.DataFrame()
    points = pd.concat(columns, axis=1).dropna()  # steps that all runs have
    rows = [bootstrap.mean(row) if len(columns) > 1 else None for row in points.to_numpy()]
    means = points.mean(axis=1)
    low = [m if row is None or row.low is None else row.low for row, m in zip(rows, means, strict=True)]
    high = [m if row is None or row.high is None else row.high for row, m in zip(rows, means, strict=True)]
    return pd.DataFrame({"mean": means, "low": low, "high": high})


def grid_of(table: pd.DataFrame, judge: str) -> pd.DataFrame | None:
    """Mean judge by the two numbers that are varied (rows and columns); None where it is not two numbers."""
    finished = table[table.status == FINISHED]
    varied = list(table.columns[table.columns.get_loc("setting") + 1 : table.columns.get_loc("seed")])
    if len(varied) != 2 or not all(pd.api.types.is_numeric_dtype(finished[key]) for key in varied):
        return None
    return finished.pivot_table(index=varied[0], columns=varied[1], values=judge, aggfunc="mean")


def _intervals(figure: Figure, table: pd.DataFrame, compared: Mapping[str, Any], baseline: str, judge: str) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    finished = table[table.status == FINISHED]
    for at, (name, entry) in enumerate(compared.items()):
        seeds = finished[finished.setting == name][judge]
        left.plot(seeds, np.full(len(seeds), at), ".", color="0.7", markersize=3, zorder=1)
        _interval(left, at, entry["measures"][judge])
        if "differences" in entry:
            _interval(right, at, entry["differences"][judge])
    zero_line(right)
    left.set(yticks=range(len(compared)), yticklabels=list(compared), xlabel=f"{judge} (grey: single runs)")
    left.set_ylim(len(compared) - 0.5, -0.5)  # the first setting on top, and none on the frame
    right.set(xlabel=f"{judge} minus {baseline}, paired by seed")
    figure.suptitle("Means over seeds, 95 % intervals", fontsize=7)


def _interval(axis: Axes, at: int, over: Over) -> None:
    value, low, high = over.estimate.value, over.estimate.low, over.estimate.high
    if value is None:
        return
    if low is not None and high is not None:
        axis.plot([low, high], [at, at], "-", color=colour(1), linewidth=1.4)
    axis.plot([value], [at], "o", color=colour(0))


def _size(parts: Mapping[str, Any], together: int | None = None) -> tuple[float, float]:
    if together is None and len(parts) <= TOGETHER:
        return COLUMN, 0.85 * COLUMN
    return 2 * COLUMN, 0.4 + 1.35 * math.ceil(len(parts) / PANELS)


def _panels(figure: Figure, names: Sequence[str]) -> list[Axes]:
    axes = figure.subplots(math.ceil(len(names) / PANELS), PANELS, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name)
    return list(axes[: len(names)])


def _curves(figure: Figure, bands: Mapping[str, pd.DataFrame], baseline: str, metric: str) -> None:
    """All settings in one panel, or where they are too many a panel each, with the baseline in grey."""
    if len(bands) <= TOGETHER:
        axis = figure.subplots()
        for at, (name, part) in enumerate(bands.items()):
            axis.plot(part.index, part["mean"], **look(at), label=name, markevery=max(1, len(part) // 5))
            axis.fill_between(part.index, part.low, part.high, color=colour(at), alpha=0.12, linewidth=0)
        axis.set(xlabel="optimizer step", ylabel=f"{metric}, 95 % over seeds")
        legend_outside(figure, [axis], 2 if max(map(len, bands)) <= ABREAST else 1)
        return
    for axis, part in zip(_panels(figure, list(bands)), bands.values(), strict=True):
        if baseline in bands:
            axis.plot(bands[baseline].index, bands[baseline]["mean"], color="0.6", linestyle="--")
        axis.plot(part.index, part["mean"], color=colour(1))
        axis.fill_between(part.index, part.low, part.high, color=colour(1), alpha=0.2, linewidth=0)
    figure.supxlabel("optimizer step", fontsize=7)
    figure.supylabel(f"{metric} (grey: {baseline})", fontsize=7)


def _beside(figure: Figure, pairs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], names: tuple[str, str]) -> None:
    """Change of what is measured since the start, beside that of what is optimised, as a share of where it started.

    A reward that rises while the judge stays or falls is being exploited.
    """
    axes = _panels(figure, list(pairs))
    for axis, pair in zip(axes, pairs.values(), strict=True):
        for at, (part, name) in enumerate(zip(pair, names, strict=True)):
            start = part["mean"].iloc[0]
            unit = 1.0 if at == 0 else abs(start) or 1.0
            style: dict[str, Any] = {"color": colour(at), "linestyle": ("-", "--")[at]}
            style["label"] = f"{name}, {('change', 'relative change')[at]}"
            axis.plot(part.index, (part["mean"] - start) / unit, **style)
    figure.supxlabel("optimizer step", fontsize=7)
    figure.supylabel("change since start", fontsize=7)
    legend_outside(figure, axes, 2, "upper")


def _map(figure: Figure, grid: pd.DataFrame, judge: str) -> None:
    axis = figure.subplots()
    image = axis.imshow(grid.to_numpy(), cmap="viridis", aspect="auto", origin="lower")
    middle = (np.nanmin(grid.to_numpy()) + np.nanmax(grid.to_numpy())) / 2
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        if np.isfinite(value):
            shade = "white" if value < middle else "black"
            axis.text(column, row, f"{value:.3f}", ha="center", va="center", color=shade, fontsize=7)
    axis.set(xticks=range(grid.shape[1]), xticklabels=[f"{v:g}" for v in grid.columns], xlabel=str(grid.columns.name))
    axis.set(yticks=range(grid.shape[0]), yticklabels=[f"{v:g}" for v in grid.index], ylabel=str(grid.index.name))
    figure.colorbar(image, ax=axis, label=f"{judge}, mean over seeds")
