"""What a run leaves: a table on the screen, every single run as CSV, and a chart."""

from __future__ import annotations

import csv
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt

from egrpo.provenance import provenance
from egrpo.rewards import RewardError
from experiments.speed.meter import PHASES

STEP = "step"
SCORING = "scoring+backward"
COLOURS = {"published": "tab:red", "ours": "tab:blue"}


@dataclass
class Measured:
    """Of one side, by phase ("step" is the whole): seconds of each run, and peak bytes above the step's start."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """Of paired runs: median, least and most."""

    middle: float
    least: float
    most: float

    @staticmethod
    def of(top: Sequence[float], bottom: Sequence[float]) -> Ratio:
        ratios = [t / b for t, b in zip(top, bottom, strict=True)]
        return Ratio(median(ratios), min(ratios), max(ratios))


def step_ratio(published: Measured, ours: Measured, phase: str = STEP) -> Ratio:
    """Published over ours, run by run."""
    return Ratio.of(*([run[phase] for run in side.seconds] for side in (published, ours)))


def memory_ratio(published: Measured, ours: Measured) -> float:
    """Ours over published, of scoring and backward pass."""
    return ours.peaks[SCORING] / published.peaks[SCORING]


def table(published: Measured, ours: Measured) -> list[str]:
    """Lines: seconds (medians), published over ours with its range, and peaks in 10^6 bytes."""
    head = f"{'phase':18}{'published s':>12}{'ours s':>10}{'ratio':>8}{'range':>16}{'published MB':>14}{'ours MB':>10}"
    lines = [head]
    for phase in (*PHASES, STEP):
        middle = [median(run[phase] for run in side.seconds) for side in (published, ours)]
        r = step_ratio(published, ours, phase)
        span = f"{r.least:.2f} to {r.most:.2f}"
        line = f"{phase:18}{middle[0]:12.3f}{middle[1]:10.3f}{r.middle:8.2f}{span:>16}"
        lines.append(line + megabytes(published, ours, phase))
    if published.peaks:
        lines.append(f"{SCORING:64}" + megabytes(published, ours, SCORING))
    return lines


def megabytes(published: Measured, ours: Measured, phase: str) -> str:
    if phase not in published.peaks:
        return ""
    return f"{published.peaks[phase] / 1e6:14.0f}{ours.peaks[phase] / 1e6:10.0f}"


def last_line(published: Measured, ours: Measured) -> str:
    """For scripts to read; a memory ratio only where memory was measured."""
    line = f"speed: step_ratio={step_ratio(published, ours).middle:.2f}"
    return line + (f" scoring_memory_ratio={memory_ratio(published, ours):.2f}" if published.peaks else "")


def told(main: Callable[[list[str]], None]) -> None:
    """Runs a command; what is wrong with its settings or results is told in one sentence, with exit code 1."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RewardError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def heading(settings: Any) -> str:
    """What the numbers belong to."""
    device = torch.cuda.get_device_name() if settings.device != "cpu" else f"CPU ({platform.machine()})"
    images = f"{settings.prompts * settings.group_size} images"
    tokens = "" if settings.image_tokens is None else f" of {settings.image_tokens} tokens"
    shape = f"{settings.shape} dry run" if settings.dry_run else settings.shape
    return (
        f"shape={shape}: {images}{tokens}, guidance {settings.cfg_weight}, "
        f"{device}, {settings.clock} seconds, {settings.threads} threads, {settings.dtype}, "
        f"checkpointing={str(settings.checkpointing).lower()}, commit {str(provenance()['git_commit'])[:12]}"
    )


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal keys; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(sides: dict[str, Measured]) -> list[dict[str, Any]]:
    """A row a side, run and phase."""
    return [
        {
            **{"side": name, "run": i, "phase": phase, "seconds": round(run[phase], 6)},
            "peak_bytes": side.peaks.get(phase, ""),
        }
        for name, side in sides.items()
        for i, run in enumerate(side.seconds)
        for phase in (*PHASES, STEP)
    ]


def chart_phases(path: Path, sides: dict[str, Measured], title: str) -> None:
    """Median seconds by phase, and peaks where they were measured."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    names = (*PHASES, STEP)
    for i, (name, side) in enumerate(sides.items()):
        at = [k + 0.4 * i for k in range(len(names))]
        seconds = [median(run[phase] for run in side.seconds) for phase in names]
        axes[0].bar(at, seconds, 0.4, label=name, color=COLOURS[name])
        axes[1].bar(at, [side.peaks.get(phase, 0) / 1e6 for phase in names], 0.4, label=name, color=COLOURS[name])
    for axis, label in zip(axes, ("seconds", "peak above the step's start, 10^6 bytes"), strict=True):
        axis.set_xticks([k + 0.2 for k in range(len(names))], names, rotation=40, ha="right")
        axis.set_ylabel(label)
        axis.legend()
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
