"""The report's tables: numbers as text, with a note wherever a number is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from egrpo.analysis.correlation import SCOPES
from egrpo.analysis.findings import ARTICLE_SLOPE
from egrpo.analysis.study import ENTROPIES, StudyDescription
from egrpo.analysis.variance import LEVELS

Numbers = Mapping[str, Any]
ENTROPY_NAMES = {"guided": "guided", "image": "conditional"}
SCOPE_HEADS = {"all": "all images", "between": "between prompts", "within": "within prompts"}
NONE = "–"
NARROW = "\u00a0"  # a space at which no line ends


@dataclass
class Table:
    """Head, rows of cells, and the notes that cells refer to by letter."""

    title: str
    about: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cell(self, estimate: Numbers, digits: int = 2) -> str:
        """Value and interval; what is missing gets a note with the reason."""
        value, low, high = estimate["value"], estimate["low"], estimate["high"]
        if value is None:
            return f"{NONE} {self._letter(estimate['reason'])}"
        if low is None:
            return f"{number(value, digits)} {self._letter(estimate['reason'])}"
        return f"{number(value, digits)} [{number(low, digits)},{NARROW}{number(high, digits)}]"

    def _letter(self, reason: str) -> str:
        if reason not in self.notes:
            self.notes.append(reason)
        return f"({letter(self.notes.index(reason))})"


def letter(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    return chr(97 + index) if index < 26 else letter(index // 26 - 1) + letter(index % 26)


def number(value: float | None, digits: int = 2) -> str:
    """A number with a proper minus; never "-0.00"."""
    if value is None:
        return NONE
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def all_tables(statistics: Numbers, study: StudyDescription) -> list[Table]:
    """Every table of the report, in order."""
    predictors = predictor_names(statistics, study)
    made = [
        _settings(statistics, study),
        *(_couplings(statistics, predictors, kind) for kind in ("pearson", "spearman", "slope")),
        _partials(statistics),
        _stratified(statistics),
        _parts(statistics, study),
        _differences(statistics, predictors),
        _diversity(statistics),
        _variance(statistics),
    ]
    return [table for table in made if table.rows]


def predictor_names(statistics: Numbers, study: StudyDescription) -> dict[str, str]:
    """Columns of entropy and what tables call them: the study's image entropy first, the other where it differs."""
    kinds = [study.entropy, *(kind for kind in ENTROPIES if kind != study.entropy)]
    if statistics["guided_equals_conditional"]:
        kinds = kinds[:1]
    names: dict[str, str] = {}
    for kind in kinds:
        logits = f", {ENTROPY_NAMES[kind]} logits" if len(kinds) > 1 else ""
        names |= {f"{kind}_entropy_{moment}": f"{moment} of image entropy{logits}" for moment in ("mean", "std")}
    return names | {f"text_entropy_{moment}": f"{moment} of plan entropy" for moment in ("mean", "std")}


def _settings(statistics: Numbers, study: StudyDescription) -> Table:
    columns = {
        "reward": "reward",
        f"{study.entropy}_entropy_mean": "mean of image entropy",
        f"{study.entropy}_entropy_std": "std of image entropy",
        "text_entropy_mean": "mean of plan entropy",
    }
    for setting in statistics["settings"].values():
        columns |= {name: name for name in setting["means"] if name.startswith("judge/")}
    table = Table(
        "Settings",
        "Means over prompts of the prompts' means. Entropies are shares of log V: 0 = certain, 1 = uniform.",
        ["setting", "images", "prompts", "plans", *columns.values()],
    )
    for name, setting in statistics["settings"].items():
        counts = [str(setting[key]) for key in ("images", "prompts", "plans")]
        table.rows.append([name, *counts, *(table.cell(setting["means"][c], 3) for c in columns)])
    return table


def _couplings(statistics: Numbers, predictors: Mapping[str, str], kind: str) -> Table:
    title, about = {
        "pearson": (
            "Reward and entropy: Pearson's r",
            "Linear correlation.",
        ),
        "spearman": ("Reward and entropy: Spearman's rank correlation", "The same for ranks."),
        "slope": (
            "Reward against entropy: slopes",
            f"Least squares, reward a unit of entropy. The article gives {number(ARTICLE_SLOPE, 3)} for reward against "
            "the standard deviation of image entropy, in units of its own rewards: signs compare, sizes need not.",
        ),
    }[kind]
    table = Table(title, about, ["setting", "against", *(SCOPE_HEADS[scope] for scope in SCOPES)])
    for name, setting in statistics["settings"].items():
        for column, label in predictors.items():
            told = setting["couplings"][column]
            if column.startswith("text") and not setting["plans"]:
                continue
            table.rows.append([name, label, *(table.cell(told[scope][kind]) for scope in SCOPES)])
    return table


def _partials(statistics: Numbers) -> Table:
    table = Table(
        "Reward and plan entropy, other things held fixed",
        "Partial correlations of reward with the mean of plan entropy.",
        ["setting", "std of image entropy", "prompt", "prompt and std of image entropy"],
    )
    for name, setting in statistics["settings"].items():
        if setting["plans"]:
            table.rows.append([name, *(table.cell(told["partial"]) for told in setting["partial"].values())])
    return table


def _stratified(statistics: Numbers) -> Table:
    table = Table(
        "Reward and plan entropy among images of low image-entropy std",
        "Pearson's r among the images whose std is at most the cut, a quantile of the setting's; quantile 1 is all.",
        ["setting", "quantile", "cut", "images", "all images", "within prompts"],
    )
    for name, rows in statistics["stratified"].items():
        if not statistics["settings"][name]["plans"]:
            continue
        for row in rows:
            cells = [table.cell(row[scope]["pearson"]) for scope in ("all", "within")]
            table.rows.append([name, f"{row['quantile']:g}", number(row["cut"], 3), str(row["images"]), *cells])
    return table


def _parts(statistics: Numbers, study: StudyDescription) -> Table:
    table = Table(
        "Single rewards and judges against the std of image entropy",
        f"Pearson's r; image entropy of {ENTROPY_NAMES[study.entropy]} logits.",
        ["setting", "score", "all images", "within prompts"],
    )
    for name, setting in statistics["settings"].items():
        for score, told in setting["parts"].items():
            table.rows.append([name, score, *(table.cell(told[scope]["pearson"]) for scope in ("all", "within"))])
    return table


def _differences(statistics: Numbers, predictors: Mapping[str, str]) -> Table:
    pairs = statistics["differences"]
    names = {"reward": "reward", **predictors, "vendi_equal": "Vendi score, equal numbers of images"}
    names |= {"vendi_within_plan": "Vendi score within a plan", "plans_distinct": "distinct plans, share"}
    for pair in pairs:
        names |= {column: column for column in pair["change"] if column.startswith(("reward/", "judge/"))}
    table = Table(
        "Differences between settings",
        "Paired by prompt: mean over prompts of the difference of the prompts' means.",
        ["quantity", *(f"{pair['to']} − {pair['from']}" for pair in pairs)],
    )
    for column, label in names.items():
        if pairs:
            table.rows.append([label, *(table.cell(pair["change"][column], 3) for pair in pairs)])
    return table


def _diversity(statistics: Numbers) -> Table:
    table = Table(
        "Diversity of a prompt's images and plans",
        f"Vendi scores (effective number of different images; cosine kernel of {statistics['diversity_source']}), "
        f"means over prompts. Only scores of equally many images, here {statistics['equal_images']}, compare between "
        "settings.",
        ["setting", "Vendi, equal numbers", "Vendi, all images", "Vendi within a plan", "distinct plans, share"],
    )
    for name, setting in statistics["settings"].items():
        table.rows.append([name, *(table.cell(told) for told in setting["diversity"].values())])
    return table


def _variance(statistics: Numbers) -> Table:
    table = Table(
        "Shares of variance",
        "Of unbiased components; a component below 0 counts as 0.",
        ["setting", "of", "between prompts", "between plans of a prompt", "within a plan"],
    )
    labels = {"reward": "reward"} | {
        f"{kind}_entropy_{moment}": f"{moment} of image entropy" for kind in ENTROPIES for moment in ("mean", "std")
    }
    for name, setting in statistics["settings"].items():
        for column, told in setting["variance"].items():
            table.rows.append([name, labels[column], *(table.cell(told["shares"][level]) for level in LEVELS)])
    return table


def claim_rows(claims: Sequence[Numbers]) -> Table:
    """A finding's claims as a table."""
    table = Table("", "", ["claim", "expected", "found, 95 % interval", "verdict"])
    for claim in claims:
        table.rows.append([claim["claim"], claim["expected"], table.cell(claim["estimate"], 3), claim["verdict"]])
    return table
