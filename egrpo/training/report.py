"""What a finished run leaves for a reader: samples before and after, curves, `summary.json`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from egrpo.images import caption, save_figure, save_sheet
from egrpo.training.validation import Row, grouped, held_out, interval, mean_scores, score_names, scores_of


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Means over held-out prompts with 95 % intervals, overall, by task type and by split.

    Held out are all prompts but those of the split "seen", which training uses too.
    """
    overall = held_out(rows)
    return {
        **mean_scores(overall),
        "interval_95": {name: interval(scores_of(overall, name)) for name in score_names(overall)},
        "prompts": len(overall),
        "by_task_type": {
            task: mean_scores(part) | {"prompts": len(part)}
            for task, part in grouped(overall, lambda row: row.record.task_type).items()
        },
        "by_split": {
            split: mean_scores(part) | {"prompts": len(part)}
            for split, part in grouped(rows, lambda r: r.split).items()
        },
    }


def gains(before: list[Row], after: list[Row]) -> dict[str, Any]:
    """Mean difference of every score on held-out prompts, paired by prompt, with its 95 % interval."""
    pairs = list(zip(held_out(before), held_out(after), strict=True))
    out = {}
    for name in score_names(held_out(before)):
        difference = np.array(
            [b.scores[name] - a.scores[name] for a, b in pairs if name in a.scores and name in b.scores]
        )
        if not len(difference):
            continue  # a reward that was dropped for every prompt, before or after
        out[name] = {"mean": float(difference.mean()), "interval_95": interval(difference)}
    return out


def save_samples(folder: Path, before: list[Row], after: list[Row], score: str, count: int = 24) -> None:
    """`before.png` and `after.png`, the same prompts and random numbers, and `before_after.png` with both beside."""
    before, after = held_out(before), held_out(after)
    chosen = np.linspace(0, len(before) - 1, min(count, len(before))).astype(int)
    for name, rows in (("before", before), ("after", after)):
        captions = [caption(rows[i].record.prompt, [f"{score} {_shown(rows[i], score)}"]) for i in chosen]
        found = [rows[i].scores[score] for i in chosen if score in rows[i].scores]
        mean = f"{np.mean(found):.2f}" if found else MISSING
        title = f"{name.capitalize()} training: mean {score} of these {len(found)} prompts {mean}"
        save_sheet(folder / f"{name}.png", [rows[i].image for i in chosen], captions, title)
    pictures, captions = [], []
    for i in chosen[:16]:
        gap = np.full((before[i].image.shape[0], max(1, before[i].image.shape[1] // 16), 3), 255, np.uint8)
        pictures.append(np.concatenate([before[i].image, gap, after[i].image], axis=1))
        scores = f"{score} {_shown(before[i], score)} -> {_shown(after[i], score)}"
        captions.append(caption(before[i].record.prompt, [scores], width=44))
    title = "Left before, right after training: same prompts, same random numbers"
    save_sheet(folder / "before_after.png", pictures, captions, title, columns=4)


MISSING = "not measured"  # of a reward that was dropped for every prompt


def _shown(row: Row, score: str) -> str:
    return f"{row.scores[score]:.2f}" if score in row.scores else MISSING


CURVES = (
    ("Reward (training batches)", ("train/reward",), "mean"),
    ("Validation, held-out prompts", ("val/reward", "val/oracle", "val/strict"), "mean score"),
    ("KL to the reference", ("train/kl",), "nats a token"),
    ("Token entropy", ("train/entropy_text", "train/entropy_image"), "share of log V"),
    ("Tokens", ("train/share_bonus", "train/share_plain", "train/share_excluded"), "share"),
    ("Gradient norm", ("train/grad_norm",), "before clipping"),
)


def save_curves(metrics_csv: Path, target: Path) -> None:
    """Draws the main metrics over optimizer steps."""
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(13, 6.5))
    axes = figure.subplots(2, 3)
    styles = ("-", "--", ":")
    for axis, (title, names, unit) in zip(axes.flat, CURVES, strict=True):
        for style, name in zip(styles, names, strict=False):
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                marker = "o" if name.startswith("val/") else None
                axis.plot(*zip(*points, strict=True), style, marker=marker, label=name)
        axis.set(title=title, xlabel="optimizer step", ylabel=unit)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, target)


def table(summaries: Mapping[str, dict[str, Any]], names: Sequence[str]) -> str:
    """Plain-text table of summaries, a line each, means with 95 % intervals."""
    lines = [f"{'held-out prompts':20}" + "".join(f"{name:>26}" for name in names)]
    for label, summary in summaries.items():
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(summary[n], *summary["interval_95"][n]) if n in summary else MISSING
            for n in names
        ]
        lines.append(f"{label.replace('_', ' '):20}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)
