"""A training step of egrpo beside the published procedure: same weights, prompts and random numbers, one process.

    python -m experiments.speed                       # the shipped shapes model
    python -m experiments.speed shape=small           # published vocabularies and image length, a small random model
    python -m experiments.speed shape=janus_pro_1b    # exact shapes, random weights, on an accelerator
    python -m experiments.speed shape=janus_pro_1b dry_run=true     # the same code at tiny sizes, on a CPU

Both sides' results are compared first; then steps alternate, published, ours, published, ours. The last line is for
scripts: published over ours in seconds, ours over published in memory of scoring and backward pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.speed.equality import TOLERANCES, check
from experiments.speed.growth import leave, measure_growth
from experiments.speed.meter import PHASES, Meter, memory_of
from experiments.speed.report import (
    SCORING,
    STEP,
    Measured,
    chart_phases,
    heading,
    last_line,
    rows_of,
    table,
    told,
    write_csv,
)
from experiments.speed.sides import Ours, Published, Side
from experiments.speed.subject import DEFAULTS, build, read_settings


def main(arguments: list[str]) -> None:
    """Compares, measures, prints, writes CSV and chart."""
    settings = read_settings(DEFAULTS, arguments)
    subject = build(settings)
    ours = Ours(subject)
    published = Published(subject, ours.module.rewards.rewards)
    title = heading(settings)
    print(title, flush=True)
    for name, difference in check(subject, ours).items():
        print(f"same: {name} {difference:.1e} (at most {TOLERANCES[name]:.0e})", flush=True)
    sides = measure([published, ours], settings)
    print(f"plan tokens drawn: published {published.plan_tokens}, ours {ours.plan_tokens}")
    print("\n".join(table(sides["published"], sides["ours"])))
    folder = Path(settings.folder) / settings.shape
    write_csv(folder / "runs.csv", rows_of(sides))
    chart_phases(folder / "phases.png", sides, title)
    if settings.growth:
        del subject, ours, published
        leave(measure_growth(settings), folder, title)
    print(f"files: {folder}")
    print(last_line(sides["published"], sides["ours"]))


def measure(pair: list[Side], settings: Any) -> dict[str, Measured]:
    """Memory first, in a run of its own that also warms up; then `repeats` timed runs of each side, in turn."""
    sides = {side.name: Measured() for side in pair}
    for side in pair:
        meter = Meter(memory_of(side.subject.device) if settings.memory else None)
        side.run(meter)
        if settings.memory:
            start = meter.before["text"]
            sides[side.name].peaks = {phase: meter.peaks[phase] - start for phase in PHASES}
            sides[side.name].peaks |= {SCORING: meter.scoring_bytes, STEP: max(meter.peaks.values()) - start}
    for i in range(settings.repeats):
        for side in pair:
            meter = Meter(clock=settings.clock)
            seconds = side.run(meter)
            sides[side.name].seconds.append({**meter.seconds, STEP: seconds})
            print(f"run {i + 1} of {settings.repeats}: {side.name} {seconds:.2f} s", flush=True)
    return sides


if __name__ == "__main__":
    told(main)
