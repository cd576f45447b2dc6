"""Scores of a run's checkpoints over its steps: a file of numbers and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egrpo.base.files import write_whole
from egrpo.benchmarks.results import Scores
from egrpo.benchmarks.table import OVERALL, TableLayout
from egrpo.images import save_figure

COLUMNS = ("step", "category", "method", "score", "low", "high")
Point = tuple[int, str, str, float, list[float] | None]


def points(scores: Mapping[int, Scores]) -> Iterator[Point]:
    """(step, category, method, score, 95 % interval) of every result and overall score, steps ascending."""
    for step, found in sorted(scores.items()):
        for result in found.results:
            yield step, result.category, result.method, result.score, result.interval
        for overall in found.overall:
            yield step, OVERALL, overall.method, overall.score, overall.interval


def save_curve(folder: Path, scores: Mapping[int, Scores], layout: TableLayout) -> None:
    """`curve.csv` (scores of 0..1) and `curve.png` (the table's unit): a panel a method, a line a column."""
    found = list(points(scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((*row[:4], *(row[4] or ("", ""))) for row in found)
    write_whole(folder / "curve.csv", text.getvalue().encode())
    shown = [row for row in found if row[1] in layout.columns]
    methods = list(dict.fromkeys(row[2] for row in shown))
    if not methods:
        return
    figure = Figure(figsize=(5.5 * len(methods), 4))
    axes = figure.subplots(1, len(methods), squeeze=False)
    for axis, method in zip(axes.flat, methods, strict=True):
        for category, heading in layout.columns.items():
            _line(axis, [row for row in shown if row[1:3] == (category, method)], heading, layout.scale)
        axis.set(title=method, xlabel="optimizer step", ylabel="score, 95 % interval over prompts")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(layout.title)
    figure.tight_layout()
    save_figure(figure, folder / "curve.png")


def _line(axis: Axes, rows: list[Point], label: str, scale: float) -> None:
    """One category over steps, with its interval where there is one."""
    if not rows:
        return
    steps, values = [row[0] for row in rows], [row[3] * scale for row in rows]
    (line,) = axis.plot(steps, values, "o-", label=label)
    bounds = [row[4] or [row[3], row[3]] for row in rows]
    low, high = ([bound[side] * scale for bound in bounds] for side in (0, 1))
    axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
