"""What a sweep's folder holds of each run, whole or not. Reads files alone: no model, no trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from egrpo.base.errors import UserError
from egrpo.training.resume import SUMMARY, decisive_settings

FINISHED, FAILED, PARTIAL, UNREADABLE, DUPLICATE = "finished", "failed", "partial", "unreadable", "duplicate"
LAST = 10  # training steps that numbers "at the end", and those at the start, are means of
AT_THE_END = (
    *("kl", "entropy_text", "entropy_image", "plans_distinct", "reward_std_within_group"),
    *("bonus_mass", "share_bonus", "share_excluded", "groups_without_signal"),
)
OWN = ("before", "after", "gain")  # of a summary's validation; what else is there was asked for by `also_validate`


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        folder: Of the run.
        name: The same, within the sweep's folder.
        status: finished, failed, partial, unreadable or duplicate.
        why: What is to be said of a run that does not count.
        overrides: Key -> value, as the run was composed; "removed" for `~key`.
        settings: Its whole configuration, nested.
        choices: Config group -> choice.
        numbers: What it measured, by column of the table; finished runs only.
        curves: Metrics by step, columns as in docs/metrics.md; empty where there are none.
        commit: Of the code.
    """

    folder: Path
    name: str
    status: str
    why: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    commit: str | None = None

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")

    @property
    def study(self) -> dict[str, Any]:
        return self.settings.get("study") or {}


def read_runs(sweep: Path) -> list[Run]:
    """All runs below a folder, by name; of runs that are the same the first counts and the others are duplicates.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not sweep.is_dir():
        raise UserError(f"sweep={sweep}: there is no such folder; give the one that the sweep's runs lie in")
    folders = {path.parent.parent for path in sweep.rglob(".hydra/overrides.yaml")}
    folders |= {path.parent for name in (SUMMARY, "error.txt") for path in sweep.rglob(name)}
    if not folders:
        raise UserError(f"sweep={sweep}: no run lies in this folder; give the one that the sweep's runs lie in")
    return _mark_duplicates([read_run(folder, sweep) for folder in sorted(folders)])


def read_run(folder: Path, sweep: Path) -> Run:
    """What a run's folder holds; a fault in one of its files makes the run unreadable and is told."""
    run = Run(folder, str(folder.relative_to(sweep)), UNREADABLE)
    try:
        run = replace(run, **_composition(folder), curves=read_metrics(folder / "metrics.csv"))
        if (folder / SUMMARY).is_file():
            return _finished(run)
        status, why = _unfinished(folder, run.curves)
        return replace(run, status=status, why=why)
    except (ValueError, TypeError, KeyError, AttributeError, OmegaConfBaseException, YAMLError, OSError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(run, status=UNREADABLE, why=told[:200])


def read_metrics(path: Path) -> pd.DataFrame:
    """metrics.csv by step, one row a step; empty where there is none. Of a row that a kill cut, nothing counts."""
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame()
    table = pd.read_csv(path, on_bad_lines="skip", low_memory=False).apply(pd.to_numeric, errors="coerce")
    return table.dropna(subset="step").groupby("step").last()  # of each column the last number that a step has


def _composition(folder: Path) -> dict[str, Any]:
    """Overrides, choices and settings: from the files that Hydra and the run have left."""
    words = _yaml(folder / ".hydra" / "overrides.yaml") or []
    hydra = (_yaml(folder / ".hydra" / "hydra.yaml") or {}).get("hydra", {})
    return {
        "overrides": named(list(words)),
        "choices": hydra.get("runtime", {}).get("choices", {}),
        "settings": _yaml(folder / "config.yaml") or {},
    }


def _yaml(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else None


def named(words: list[str]) -> dict[str, str]:
    """Overrides by key: {"seed": "0"}; without the signs that only composing needs."""
    pairs = [word.partition("=") for word in words]
    return {
        key.lstrip("+~").removeprefix("sweep/").removesuffix("@_global_"): value if equals else "removed"
        for key, equals, value in pairs
    }


def _unfinished(folder: Path, curves: pd.DataFrame) -> tuple[str, str]:
    steps = int(curves.index.max()) if len(curves) else 0
    error = folder / "error.txt"
    if error.is_file():
        lines = [line for line in error.read_text(errors="replace").splitlines() if line.strip()]
        return FAILED, f"after {steps} steps: {lines[-1].strip() if lines else 'no message'}"[:200]
    return PARTIAL, f"{steps} steps so far, no {SUMMARY}"


def _finished(run: Run) -> Run:
    """With its numbers. The summary knows best how the run was composed: .hydra is written anew at every start."""
    summary = json.loads((run.folder / SUMMARY).read_text())
    validation = summary["validation"]
    why = "" if validation else "not validated"
    return replace(
        run,
        status=FINISHED,
        why=why,
        settings=summary["config"],
        overrides=named(summary["overrides"]) if "overrides" in summary else run.overrides,
        choices=summary.get("choices") or run.choices,
        commit=summary.get("git_commit"),
        numbers=_scores(validation) | _areas(run.curves, validation) | _ends(run.curves) | _costs(summary),
    )


def _scores(validation: dict[str, Any]) -> dict[str, float]:
    """Held-out means: strict, strict/SPLIT, untouched/strict, gain/strict, and strict@NAME where drawn otherwise."""
    out: dict[str, float] = {}
    if not validation:
        return out
    out |= _numbers(validation["after"])
    out |= {f"untouched/{name}": value for name, value in _numbers(validation["before"]).items()}
    out |= {f"gain/{name}": gain["mean"] for name, gain in validation["gain"].items()}
    for split, scores in validation["after"]["by_split"].items():
        out |= {f"{name}/{split}": value for name, value in _numbers(scores).items() if "/" not in name}
    for other in validation:  # in the summary's order, so that a table is the same every time
        if other not in OWN and not other.startswith("temperature_"):
            out |= {f"{name}@{other}": value for name, value in _numbers(validation[other]).items()}
    return out


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in scores.items() if isinstance(v, int | float) and k != "prompts"}


def _areas(curves: pd.DataFrame, validation: dict[str, Any]) -> dict[str, float]:
    """Area under each validation curve over its steps, so that it reads as a mean score while training."""
    out = {}
    names = [name for name in _numbers(validation.get("after", {})) if "/" not in name]
    for column, name in [(f"val/{name}", name) for name in names] + [("train/reward", "train_reward")]:
        points = curves[column].dropna() if column in curves else pd.Series(dtype=float)
        if len(points) > 1:
            steps = points.index.to_numpy(float)
            out[f"area/{name}"] = float(np.trapezoid(points.to_numpy(), steps) / (steps[-1] - steps[0]))
    return out


def _ends(curves: pd.DataFrame) -> dict[str, float]:
    """Means of the last training steps, kl, and of the first, start/kl."""
    out = {}
    for name in AT_THE_END:
        values = curves[f"train/{name}"].dropna() if f"train/{name}" in curves else pd.Series(dtype=float)
        if len(values):
            out[name] = float(values.iloc[-LAST:].mean())
            out[f"start/{name}"] = float(values.iloc[:LAST].mean())
    return out


def _costs(summary: dict[str, Any]) -> dict[str, float]:
    config, steps = summary["config"], summary["steps"]
    rollouts = steps / config["objective"]["updates_per_rollout"]
    images = rollouts * config["data"]["prompts_per_step"] * config["rollout"]["group_size"]
    return {"steps": steps, "images": images, "seconds": summary["seconds"]["total"]}


def _mark_duplicates(runs: list[Run]) -> list[Run]:
    first: dict[str, Run] = {}
    out = []
    for run in runs:
        key = json.dumps(decisive_settings(run.settings), sort_keys=True, default=str)
        if run.status == FINISHED and key in first:
            same = _measured(run) == _measured(first[key])
            told = f"the same settings as {first[key].name}, with {'the same' if same else 'other'} numbers"
            run = replace(run, status=DUPLICATE, why=told)
        elif run.status == FINISHED:
            first[key] = run
        out.append(run)
    return out


def _measured(run: Run) -> dict[str, float]:
    return {name: value for name, value in run.numbers.items() if name != "seconds"}
