"""`python -m experiments.findings FOLDER`: the claims of the paper's findings over seeds: CSV, table, figure.

FOLDER is what `python -m egrpo.analyze -m +experiment=analysis_method "seed=range(5)"` filled: a folder a seed, whose
`statistics.json` judges every claim by an interval over prompts. Here the unit is the seed. Seeds without it are named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from egrpo.analysis.findings import QUOTES, judge
from egrpo.analysis.resampling import Bootstrap
from egrpo.analysis.style import colour, zero_line
from egrpo.studies.compare import Over, over_seeds
from egrpo.studies.text import told

HERE = Path(__file__).parent
SCOPES = {"claims": "all images", "claims_within_prompts": "within prompts"}


def read_claims(folder: Path) -> pd.DataFrame:
    """A row a claim and seed: finding, scope, claim, expected, margin, seed, value, low, high, verdict."""
    rows = []
    for path in sorted(folder.glob("seed_*/statistics.json")):
        seed = int(path.parent.name.removeprefix("seed_"))
        for finding in json.loads(path.read_text())["findings"]:
            for key, scope in SCOPES.items():
                for claim in finding[key]:
                    own = {k: claim[k] for k in ("claim", "expected", "margin", "verdict")}
                    estimate = {k: claim["estimate"][k] for k in ("value", "low", "high")}
                    rows.append({"finding": finding["number"], "scope": scope, "seed": seed} | own | estimate)
    return pd.DataFrame(rows)


def over_all(claims: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: mean over seeds with interval, that interval's verdict, and how many seeds support it alone."""
    bootstrap = Bootstrap(5000, 0)
    rows: list[dict[str, Any]] = []
    for (finding, scope, claim), part in claims.groupby(["finding", "scope", "claim"], sort=False):
        over = over_seeds(part.value.to_numpy(float), bootstrap)
        direction = 1 if part.expected.iloc[0] == "above 0" else -1
        verdict = judge(over.estimate.to_json(), direction, float(part.margin.mean()))
        alone = int((part.verdict == "supported").sum())
        rows.append({"finding": finding, "scope": scope, "claim": claim, "expected": part.expected.iloc[0]}
                    | {"over": over, "verdict": verdict, "alone": f"{alone} of {len(part)}"})  # fmt: skip
    return pd.DataFrame(rows)


def table(claims: pd.DataFrame) -> str:
    """Markdown, a table a finding."""
    lines = []
    for number, quote in enumerate(QUOTES, 1):
        lines += [f'**Finding {number}.** "{quote}"', ""]
        lines += [
            "| claim | scope | expected | mean over seeds | verdict | seeds that support it alone |",
            "|---" * 6 + "|",
        ]
        for row in claims[claims.finding == number].itertuples():
            over: Over = row.over
            cells = [row.claim, row.scope, row.expected, told(over, sign=True), row.verdict, row.alone]
            lines.append(f"| {' | '.join(str(c) for c in cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(claims: pd.DataFrame, path: Path) -> None:
    """Means and intervals of correlations (findings 2 and 3), a row a claim."""
    shown = claims[claims.finding > 1].reset_index(drop=True)
    figure = Figure(figsize=(8, 0.22 * len(shown) + 0.8), layout="constrained")
    axis = figure.subplots()
    at = np.arange(len(shown))
    for place, row in zip(at, shown.itertuples(), strict=True):
        estimate, ink = row.over.estimate, colour(0 if row.scope == SCOPES["claims"] else 1)
        if estimate.low is not None:
            axis.plot([estimate.low, estimate.high], [place, place], color=ink)
        if estimate.value is not None:  # a correlation of too few images may not be defined
            axis.plot(estimate.value, place, "o", color=ink, markersize=4)
    zero_line(axis)
    labels = [f"{row.claim} ({row.scope})" for row in shown.itertuples()]
    axis.set(yticks=at, yticklabels=labels)
    axis.set_xlabel("correlation, mean over seeds", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    figure.savefig(path, dpi=160)


def main(folder: Path, target: Path = HERE) -> None:
    """Reads, puts together, leaves results.csv, table.md and findings.png in `target`."""
    missing = [p.name for p in sorted(folder.glob("seed_*")) if not (p / "statistics.json").is_file()]
    claims = read_claims(folder)
    if claims.empty:
        sys.exit(f"error: {folder} holds no seed_*/statistics.json; give the folder that the analysis' sweep filled")
    claims.round(6).to_csv(target / "results.csv", index=False)
    together = over_all(claims)
    (target / "table.md").write_text(table(together))
    draw(together, target / "findings.png")
    print(table(together))
    print(f"{claims.seed.nunique()} seeds; without statistics.json: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m experiments.findings FOLDER [TARGET]")
    main(*map(Path, sys.argv[1:]))
