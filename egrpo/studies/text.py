"""A study's result as a Markdown fragment for its README, and what is told on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from egrpo.studies.compare import Over, seeds_needed
from egrpo.studies.runs import FINISHED

WORTH = 0.02  # a difference of scores that one would want to find


def fragment(compared: Mapping[str, Any], baseline: str, judge: str, table: pd.DataFrame) -> str:
    """Markdown: a table with a row a setting, what is left out, and how the numbers were made."""
    measures = list(next(iter(compared.values()))["measures"])
    head = ["setting", "seeds", *measures[:1], f"{judge} minus {baseline}, paired", *measures[1:]]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, entry in compared.items():
        means = entry["measures"]
        difference = told(entry["differences"][judge], sign=True) if "differences" in entry else "(baseline)"
        cells = [name, str(means[measures[0]].seeds), told(means[measures[0]]), difference]
        lines.append(_row(cells + [told(means[m]) for m in measures[1:]]))
    return "\n".join([*lines, "", *_notes(compared, judge, table), ""])


def told(over: Over, sign: bool = False) -> str:
    """ "+.013 [-.028, +.054]": a mean with its interval."""
    value, low, high = over.estimate.value, over.estimate.low, over.estimate.high
    if value is None:
        return "-"
    if low is None or high is None:
        return _short(value, sign)
    return f"{_short(value, sign)} [{_short(low, sign)}, {_short(high, sign)}]"


def verdict(over: Over) -> str:
    """What a paired difference shows: `higher`, `lower`, or `not told apart` where both intervals do not agree."""
    low, high = over.estimate.low, over.estimate.high
    if over.student is None or low is None or high is None:
        return "not told apart"
    if min(low, over.student[0]) > 0:
        return "higher"
    return "lower" if max(high, over.student[1]) < 0 else "not told apart"


def left_out(table: pd.DataFrame) -> list[str]:
    """A line for each run that does not count, or counts in part."""
    return [f"{row.status}: {row.run}: {row.why}" for row in table.itertuples() if row.why or row.status != FINISHED]


def counts(table: pd.DataFrame) -> str:
    """ "8 finished, 1 failed"."""
    return ", ".join(f"{count} {status}" for status, count in table.status.value_counts().items())


def _notes(compared: Mapping[str, Any], judge: str, table: pd.DataFrame) -> Sequence[str]:
    finished = table[table.status == FINISHED]
    images, hours = sorted(finished.images.unique()), finished.seconds.sum() / 3600
    commits = sorted(str(c) for c in finished.commit.dropna().unique())
    lines = [
        "Means over seeds with 95 % intervals: bootstrap over seeds; differences are paired by seed.",
        f"Runs: {counts(table)}. {hours:.2f} hours of runs, {finished.seconds.mean():.0f} s a run. "
        f"Images drawn in training: {', '.join(f'{n:.0f}' for n in images)}. Commit: {', '.join(commits) or '?'}.",
    ]
    if len(images) > 1:
        lines.append("**The runs did not have the same budget of images.**")
    spread = [e["differences"][judge].deviation for e in compared.values() if "differences" in e]
    spread = [deviation for deviation in spread if deviation]
    if spread:
        widest = max(spread)
        lines.append(
            f"Paired differences of `{judge}` vary over seeds with a standard deviation of up to {widest:.3f}: to find "
            f"a difference of {WORTH} with a power of .8, {seeds_needed(widest, WORTH)} seeds are needed."
        )
    return lines


def _short(value: float, sign: bool) -> str:
    digits = f"{value:+.3f}" if sign else f"{value:.3f}"
    if abs(value) >= 100:
        digits = f"{value:+.0f}" if sign else f"{value:.0f}"
    elif 0 < abs(value) < 0.01:
        digits = f"{value:+.2g}" if sign else f"{value:.2g}"
    return digits.replace("0.", ".", 1) if digits.lstrip("+-").startswith("0.") else digits


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
