"""Results as a table in Markdown, LaTeX or CSV, with the published rows beside; each row says what it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from egrpo.benchmarks.manifest import warning
from egrpo.benchmarks.results import Overall, Result, Scores

OVERALL = "overall"
NAME, KIND = "model", "scored by"


@dataclass(frozen=True)
class Published:
    """A row of somebody's paper, in the table's unit."""

    name: str
    source: str
    scores: Mapping[str, float]  # column -> number


@dataclass(frozen=True)
class TableLayout:
    """How a benchmark's table looks.

    Args:
        title: Above it.
        columns: Category -> heading, in order; `overall` is the weighted sum.
        scale: A score of 1 is shown as this.
        digits: After the point.
        published: Rows of papers.
    """

    title: str
    columns: Mapping[str, str]
    scale: float = 100.0
    digits: int = 2
    published: Sequence[Published] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Cells as text: a header, rows, and notes to stand below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    def markdown(self) -> str:
        """With the notes as a list below."""
        lines = [f"**{self.title}**", "", _pipes(self.header), _pipes(["---"] * 2 + ["---:"] * (len(self.header) - 2))]
        lines += [_pipes([cell.replace("|", "\\|") for cell in row]) for row in self.rows]
        return "\n".join([*lines, "", *[f"- {note}" for note in self.notes]]).rstrip() + "\n"

    def latex(self) -> str:
        """A `tabular` for the package booktabs, with the notes as comments and as text below."""
        lines = [f"% {self.title}", r"\begin{tabular}{ll" + "r" * (len(self.header) - 2) + "}", r"\toprule"]
        lines += [" & ".join(map(_tex, self.header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_tex(note)}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Header and rows alone."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return out.getvalue()


def build_table(layout: TableLayout, runs: Mapping[str, Scores]) -> Table:
    """One row a run and way of scoring, then the published rows.

    Args:
        layout: Of the benchmark.
        runs: Name of the row -> its scores. Results that are not among the layout's columns are left out.

    Returns:
        A table whose notes name every stand-in, source, incomplete set, and runs that were not drawn alike.
    """
    rows, notes = [], []
    for name, scores in runs.items():
        for official in (True, False):
            part = [r for r in scores.results if (r.stand_in == "") is official]
            overall = [o for o in scores.overall if (o.stand_in == "") is official]
            for methods in _apart(part, layout.columns):
                kind = "official" if official else "stand-in"
                cells = [_cell(methods.get(c), overall, c, methods, layout) for c in layout.columns]
                if any(cells):
                    rows.append([name, f"{kind}: {_methods(methods.values())}", *cells])
            notes += [f"{name}, {r.category}, {r.method}: stand-in, {r.stand_in}" for r in part if r.stand_in]
            notes += [f"{name}, {r.category}: {_subset(r)}" for r in part if _subset(r)]
    rows += [
        [p.name, "published", *[_number(p.scores.get(c), layout) for c in layout.columns]] for p in layout.published
    ]
    notes += [f"{p.name}, published: {p.source}" for p in layout.published]
    notes += ["[low, high]: 95 % interval by bootstrap over prompts"] if any("[" in c for r in rows for c in r) else []
    notes += _unlike(runs)
    return Table(layout.title, [NAME, KIND, *layout.columns.values()], rows, list(dict.fromkeys(notes)))


def _apart(results: Sequence[Result], columns: Mapping[str, str]) -> list[dict[str, Result]]:
    """Results in as few rows as hold at most one a column: several methods for one category need several rows."""
    rows: list[dict[str, Result]] = []
    for result in results:
        if result.category not in columns:
            continue
        free = [row for row in rows if result.category not in row]
        alike = [row for row in free if any(r.method == result.method for r in row.values())]
        row = next(iter([*alike, *free]), None)
        if row is None:
            row = {}
            rows.append(row)
        row[result.category] = result
    return rows


def _cell(
    result: Result | None, overall: Sequence[Overall], column: str, row: Mapping[str, Result], layout: TableLayout
) -> str:
    shown: Result | Overall | None = result
    if shown is None and column == OVERALL:
        methods = {r.method for r in row.values()}
        shown = next((o for o in overall if o.method in methods), None)
    if shown is None:
        return ""
    interval = shown.interval
    text = _number(shown.score * layout.scale, layout)
    return text if interval is None else f"{text} [{', '.join(_number(x * layout.scale, layout) for x in interval)}]"


def _number(value: float | None, layout: TableLayout) -> str:
    return "" if value is None else f"{value:.{layout.digits}f}"


def _methods(results) -> str:
    return ", ".join(dict.fromkeys(result.method for result in results))


def _subset(result: Result) -> str:
    if result.expected_prompts is None or len(result.values) == result.expected_prompts:
        return ""
    return f"{len(result.values)} prompts, the official set has {result.expected_prompts}"


def _unlike(runs: Mapping[str, Scores]) -> list[str]:
    """Warnings for every run against the first."""
    names = list(runs)
    found = [warning(runs[names[0]].manifest, runs[name].manifest, (names[0], name)) for name in names[1:]]
    return [f"warning: {text}" for text in found if text]


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
