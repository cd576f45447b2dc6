"""Scores by prompt, their means and intervals, and the file `scores.json` that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from egrpo.base.errors import UserError
from egrpo.base.files import write_whole
from egrpo.benchmarks.manifest import Manifest

RESAMPLES = 5000
FILE = "scores.json"


@dataclass(frozen=True)
class Result:
    """One category's scores by one method; a prompt's value is the mean over its images."""

    category: str
    method: str
    values: Mapping[str, float]  # key of the prompt -> score, in the benchmark's own unit (0..1)
    images: int
    stand_in: str = ""  # how this differs from the official evaluator; "" = it is the official one
    expected_prompts: int | None = None  # in the whole official set; None = not known

    @property
    def score(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def interval(self) -> list[float] | None:
        """95 % interval of the mean over prompts."""
        return bootstrap([list(self.values.values())], [1.0])

    def to_dict(self) -> dict[str, Any]:
        whole = {"score": self.score, "interval_95": self.interval, "prompts": len(self.values)}
        return {**whole, **asdict(self), "values": dict(self.values)}


@dataclass(frozen=True)
class Overall:
    """A weighted sum over categories."""

    method: str
    score: float
    interval: list[float] | None
    weights: Mapping[str, float]
    stand_in: str = ""


@dataclass(frozen=True)
class Scores:
    """All results for one exported folder."""

    benchmark: str
    results: Sequence[Result]
    overall: Sequence[Overall] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)  # what else is worth knowing: a judge's cost
    manifest: Manifest | None = None

    def save(self, folder: Path) -> Path:
        """Writes `scores.json` into the folder, whole or not at all; returns its path."""
        content = {
            "benchmark": self.benchmark,
            "overall": [asdict(overall) for overall in self.overall],
            "results": [result.to_dict() for result in self.results],
            "notes": dict(self.notes),
            "manifest": asdict(self.manifest) if self.manifest else None,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(folder / FILE, text.encode())
        return folder / FILE

    @staticmethod
    def load(folder: Path) -> Scores:
        """Inverse of `save`.

        Raises:
            UserError: the folder has no such file, or it is not one of these.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Scores(
                content["benchmark"],
                [_result(row) for row in content["results"]],
                [Overall(**row) for row in content["overall"]],
                content["notes"],
                Manifest.from_dict(content["manifest"]) if content["manifest"] else None,
            )
        except FileNotFoundError:
            raise UserError(f"{folder} has no {FILE}: score it, or read official results back, first") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a scores file ({error}): score the folder again") from error

    def merged(self, other: Scores) -> Scores:
        """Both, where `other`'s results take the place of this one's of the same category and method."""
        theirs = {(r.category, r.method) for r in other.results}
        kept = [r for r in self.results if (r.category, r.method) not in theirs]
        sums = {o.method for o in other.overall}
        return Scores(
            self.benchmark,
            [*kept, *other.results],
            [*[o for o in self.overall if o.method not in sums], *other.overall],
            {**self.notes, **other.notes},
            other.manifest or self.manifest,
        )


class ScoringError(UserError):
    """Some categories could not be scored; `scores` holds all others."""

    def __init__(self, scores: Scores, faults: Mapping[str, Sequence[str]]) -> None:
        self.scores = scores
        lines = [f"{', '.join(names)} of {scores.benchmark} cannot be scored: {told}" for told, names in faults.items()]
        super().__init__("\n".join(lines))


def with_overall(results: Sequence[Result], weights: Mapping[str, float]) -> list[Overall]:
    """The weighted sum for every method that has a result for each category in `weights`; none without weights."""
    sums = []
    for method in dict.fromkeys(result.method for result in results):
        parts = {r.category: r for r in results if r.method == method}
        if not weights or not set(weights) <= set(parts):
            continue
        values = [list(parts[name].values.values()) for name in weights]
        shares = list(weights.values())
        score = sum(share * float(np.mean(part)) for share, part in zip(shares, values))
        stand_in = next((parts[name].stand_in for name in weights if parts[name].stand_in), "")
        sums.append(Overall(method, score, bootstrap(values, shares), dict(weights), stand_in))
    return sums


def bootstrap(parts: Sequence[Sequence[float]], weights: Sequence[float], seed: int = 0) -> list[float] | None:
    """95 % interval of sum_i weights[i] x mean(parts[i]), by percentiles; prompts are drawn within each part.

    None where a part has fewer than two prompts, or nothing varies.
    """
    arrays = [np.asarray(part, float) for part in parts]
    if any(len(part) < 2 for part in arrays):
        return None
    if all(math.isclose(part.min(), part.max()) for part in arrays):
        return None

    def weighted(*samples, axis=-1):
        return sum(weight * sample.mean(axis=axis) for weight, sample in zip(weights, samples))

    found = stats.bootstrap(
        arrays,
        weighted,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=max(1, 2_000_000 // max(map(len, arrays))),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def by_prompt(scores: Sequence[tuple[str, float]]) -> dict[str, float]:
    """(key, score) of every image -> mean score of every prompt, in order of appearance."""
    groups: dict[str, list[float]] = {}
    for key, score in scores:
        groups.setdefault(key, []).append(score)
    return {key: float(np.mean(group)) for key, group in groups.items()}


def _result(row: Mapping[str, Any]) -> Result:
    names = ("category", "method", "values", "images", "stand_in", "expected_prompts")
    return Result(**{name: row[name] for name in names})
