"""`python -m egrpo.collect sweep=FOLDER`: the runs of a sweep as a tidy table, compared over seeds, with figures.

Leaves in its target: runs.csv (one row a run, whole or not), results.json, table.md (for a README) and figures/.
Failed, partial, unreadable and duplicated runs are named and left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from egrpo.analysis.resampling import Bootstrap
from egrpo.base.errors import UserError
from egrpo.base.files import write_whole
from egrpo.base.targets import claim_target
from egrpo.entry import run
from egrpo.provenance import write_json
from egrpo.studies.compare import baseline_of, compare, matching
from egrpo.studies.figures import draw_all
from egrpo.studies.runs import FINISHED, Run, read_runs
from egrpo.studies.table import run_table, varied_settings
from egrpo.studies.text import counts, fragment, left_out, verdict

WRITTEN = ("runs.csv", "results.json", "table.md", "figures")


def collect(cfg: DictConfig) -> None:
    """Reads, compares, draws, tells."""
    runs, target = read_runs(Path(cfg.sweep)), Path(cfg.target)
    aside = list(cfg.aside)
    table = run_table(runs, cfg.judge, aside)
    check(table, cfg)
    baseline = baseline_of(table, cfg.baseline or _own_baseline(runs, table))
    measures = list(dict.fromkeys([cfg.judge, *matching(list(table.columns), list(cfg.measures))]))
    bootstrap = Bootstrap(cfg.resamples, cfg.seed)
    compared = compare(table, measures, baseline, bootstrap)
    claim_target(target, "target", "collect", names=WRITTEN, signs=("results.json",))
    write_whole(target / "runs.csv", table.round(6).to_csv(index=False).encode())
    text = fragment(compared, baseline, cfg.judge, table)
    write_whole(target / "table.md", text.encode())
    by_setting = {
        name: [r for r, label in zip(runs, table.setting, strict=True) if label == name and r.status == FINISHED]
        for name in compared
    }
    told: dict[str, Any] = {"baseline": baseline, "judge": cfg.judge}
    looks = told | {"curves": list(cfg.curves), "proxy": cfg.proxy, "bootstrap": bootstrap}
    drawn = draw_all(target / "figures", by_setting, table, compared, looks)
    varied = varied_settings(runs, aside)
    write_json(target / "results.json", told | {"varied": varied, "figures": drawn} | results(compared, table))
    print(text)
    print("\n".join(left_out(table)) or "no run was left out")
    print(f"{len(runs)} runs: {counts(table)}")
    print(target)


def check(table: pd.DataFrame, cfg: DictConfig) -> None:
    """Whether there is something to compare.

    Raises:
        UserError: no run is finished, or none has the judge's score.
    """
    finished = table[table.status == FINISHED]
    if not len(finished):
        raise UserError("\n".join([f"sweep={cfg.sweep}: none of the {len(table)} runs is finished", *left_out(table)]))
    if cfg.judge not in finished or not finished[cfg.judge].notna().any():
        numbers = sorted(c for c in finished if pd.api.types.is_numeric_dtype(finished[c]))
        raise UserError(f"judge={cfg.judge}: no finished run has this score; choose of {', '.join(numbers)}")


def results(compared: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """What results.json holds of the settings and of the runs that were left out."""
    settings = {
        name: {
            "runs": entry["runs"],
            "measures": {m: over.to_json() for m, over in entry["measures"].items()},
            "differences": {
                m: over.to_json() | {"verdict": verdict(over)} for m, over in entry.get("differences", {}).items()
            },
        }
        for name, entry in compared.items()
    }
    return {"settings": settings, "runs": counts(table), "left_out": left_out(table)}


def _own_baseline(runs: list[Run], table: pd.DataFrame) -> str | None:
    """What the study compares with, where such a run is finished."""
    wanted = {str(r.study["baseline"]) for r in runs if r.status == FINISHED and r.study.get("baseline")}
    present = wanted & set(table[table.status == FINISHED].setting)
    return present.pop() if len(present) == 1 else None


if __name__ == "__main__":
    run(collect, "collect", "collect")
