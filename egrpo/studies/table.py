"""One row a run, and which of its settings the study varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from egrpo.studies.runs import FINISHED, Run

BESIDE = ("seed", "experiment", "size")  # overrides that do not by themselves make another setting


def varied_settings(runs: Sequence[Run], aside: Sequence[str] = ()) -> list[str]:
    """Keys of overrides that differ among the finished runs, in order of appearance, the seed and `aside` aside."""
    finished = [run for run in runs if run.status == FINISHED]
    keys = dict.fromkeys(key for run in finished for key in run.overrides if key not in (*BESIDE[:1], *aside))
    differing = [key for key in keys if len({value_of(run, key) for run in finished}) > 1]
    # The sweep and the experiment name what other keys tell, unless there are none.
    return [key for key in differing if key not in (*BESIDE, "sweep")] or differing


def value_of(run: Run, key: str) -> str:
    """A run's value of a setting: as overridden, else its group's choice, else what its configuration says."""
    if key in run.overrides:
        return run.overrides[key]
    if run.choices.get(key) is not None:
        return str(run.choices[key])
    node: Any = run.settings
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return "" if node is None else str(node)


def run_table(runs: Sequence[Run], judge: str, aside: Sequence[str] = ()) -> pd.DataFrame:
    """One row a run, whole or not: name, status, why, setting, what is varied, seed, commit, `aside`, its numbers.

    Args:
        runs: All of a sweep.
        judge: The score whose gain KL is told by: `kl_per_point` is the KL at the end (nats a token) over the points
            (hundredths) gained; not defined where nothing is gained.
        aside: Overrides that do not make another setting, such as where a run ran. They stay columns.
    """
    varied = varied_settings(runs, aside)
    labels = _labels(runs, varied)
    rows = []
    for run, label in zip(runs, labels, strict=True):
        row: dict[str, Any] = {"run": run.name, "status": run.status, "why": run.why, "setting": label}
        row |= {key: _number(value_of(run, key)) for key in varied}
        row |= {"seed": run.seed, "commit": run.commit, **{key: value_of(run, key) for key in aside}, **run.numbers}
        gained = run.numbers.get(f"gain/{judge}", 0.0)
        if "kl" in run.numbers and gained > 0:
            row["kl_per_point"] = run.numbers["kl"] / (100 * gained)
        rows.append(row)
    return pd.DataFrame(rows)


def _labels(runs: Sequence[Run], varied: Sequence[str]) -> list[str]:
    """The study's own name of each run's setting, with what is varied beside it where that name is not enough."""
    own = [str(run.study.get("setting") or "") for run in runs]
    values = [tuple(value_of(run, key) for key in varied) for run in runs]
    by_name: dict[str, set[tuple[str, ...]]] = {}
    for name, value, run in zip(own, values, runs, strict=True):
        if run.status == FINISHED:
            by_name.setdefault(name, set()).add(value)
    told = [", ".join(f"{key}={v}" for key, v in zip(varied, value, strict=True)) for value in values]
    return [
        name if name and len(by_name.get(name, ())) < 2 else " ".join(filter(None, (name, text))) or "all"
        for name, text in zip(own, told, strict=True)
    ]


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
