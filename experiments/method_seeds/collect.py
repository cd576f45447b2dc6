"""`python -m experiments.method_seeds.collect FOLDER`: the runs of a sweep as a CSV, a figure and a table.

FOLDER is what `python -m egrpo.train -m +experiment=shapes_grpo,shapes_eg_grpo seed=0,1,2,3,4` printed. Runs without a
summary are named and left out.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from scipy import stats

HERE = Path(__file__).parent
COLUMNS = (
    "method", "seed", "strict_before", "strict_after", "oracle_before", "oracle_after", "strict_seen",
    "strict_unseen_prompt", "strict_unseen_composition", "kl_last", "entropy_text_last",
    "entropy_image_last", "plans_distinct_last", "seconds", "git_commit",
)  # fmt: skip


def read_run(folder: Path) -> dict[str, Any]:
    """One row of the CSV from a run's summary and the mean of its last ten training steps."""
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/kl")][-10:]
    validation = summary["validation"]
    splits = validation["after"]["by_split"]
    last = {name: np.mean([float(row[f"train/{name}"]) for row in rows]) for name in
            ("kl", "entropy_text", "entropy_image", "plans_distinct")}  # fmt: skip
    return {
        "method": OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.choices.entropy_policy,
        "seed": summary["seed"],
        "strict_before": validation["before"]["strict"],
        "strict_after": validation["after"]["strict"],
        "oracle_before": validation["before"]["oracle"],
        "oracle_after": validation["after"]["oracle"],
        **{f"strict_{name}": splits[name]["strict"] for name in ("seen", "unseen_prompt", "unseen_composition")},
        **{f"{name}_last": value for name, value in last.items()},
        "seconds": summary["seconds"]["total"],
        "git_commit": summary["git_commit"],
    }


def curve(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and mean training reward, over windows of ten steps."""
    with (folder / "metrics.csv").open(newline="") as file:
        rewards = [float(row["train/reward"]) for row in csv.DictReader(file) if row.get("train/reward")]
    windows = [rewards[i : i + 10] for i in range(0, len(rewards), 10)]
    return [10 * i + len(w) for i, w in enumerate(windows)], [float(np.mean(w)) for w in windows]


def main(sweep: Path) -> None:
    runs = sorted(path.parent for path in sweep.glob("*/config.yaml"))
    whole = [run for run in runs if (run / "summary.json").exists()]
    for run in sorted(set(runs) - set(whole)):
        print(f"left out, no summary.json: {run}")
    if not whole:
        raise SystemExit(f"error: {sweep} holds no finished run; give the folder that the sweep printed")
    rows = sorted((read_run(run) for run in whole), key=lambda row: (row["method"], row["seed"]))
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    draw({run: read_run(run) for run in whole})
    report(rows)


def draw(runs: dict[Path, dict[str, Any]]) -> None:
    """Training reward of every run, one line style a method."""
    styles = dict(zip(sorted({row["method"] for row in runs.values()}), ("-", "--", ":", "-."), strict=False))
    figure, axis = plt.subplots(figsize=(6, 4))
    for run, row in runs.items():
        label = row["method"] if row["method"] not in axis.get_legend_handles_labels()[1] else None
        axis.plot(*curve(run), styles[row["method"]], color="C" + str(list(styles).index(row["method"])), label=label)
    axis.set(
        xlabel="optimizer step", ylabel="training reward (mean of 10 steps)", title="Shapes world, one line a seed"
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(HERE / "reward.png", dpi=110)


def report(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, and the difference of the methods paired by seed, with 95 % intervals (Student's t)."""
    by_method: dict[str, dict[int, float]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row["strict_after"]
    for method, scores in by_method.items():
        print(f"{method:20} strict after {interval(np.array(list(scores.values())))}  ({len(scores)} seeds)")
    if {"uniform", "entropy_guided"} <= set(by_method):
        plain, guided = by_method["uniform"], by_method["entropy_guided"]
        seeds = sorted(set(plain) & set(guided))
        print(f"entropy_guided - uniform, paired: {interval(np.array([guided[s] - plain[s] for s in seeds]))}")


def interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():+.3f}"
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{values.mean():+.3f} [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m experiments.method_seeds.collect FOLDER")
    main(Path(sys.argv[1]))
