"""How two columns of the table go together: over all images, between prompts, within prompts.

Values are scipy's and statsmodels'; only their resampling is computed here, for thousands of resamples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from egrpo.analysis.resampling import Bootstrap, Estimate
from egrpo.base.errors import UserError

SCOPES = ("all", "between", "within")
COUPLINGS = ("pearson", "spearman", "slope")
LEAST_ROWS = 3
_VARIES = 1e-9  # least spread, in units of the largest absolute value, of what is not rounding


@dataclass(frozen=True)
class Scoped:
    """Columns as one scope sees them; `reason` where nothing can be computed from them.

    all: as they are. between: the prompts' means, one row a prompt. within: deviations from the prompt's mean, of
    prompts with two images or more.
    """

    values: np.ndarray  # [n, k]
    prompts: np.ndarray  # [n] int, 0..P-1
    count: int  # P
    reason: str | None = None


def scoped(frame: pd.DataFrame, columns: Sequence[str], scope: str) -> Scoped:
    """The named columns in a scope; rows in which one of them is NaN are left out.

    Raises:
        UserError: an unknown scope.
    """
    if scope not in SCOPES:
        raise UserError(f'scope is "{scope}"; choose one of {", ".join(SCOPES)}')
    told = frame.dropna(subset=list(columns))
    for column in columns:
        if not frame[column].notna().any():
            return _nothing(f"{column} is empty: it was not measured for these images")
    scale = told[list(columns)].abs().max().to_numpy(float)
    groups = told.groupby("prompt_index")
    if scope == "between":
        chosen = groups[list(columns)].mean()
        prompts = np.arange(len(chosen))
    else:
        chosen = told[list(columns)]
        if scope == "within":
            several = (groups["prompt_index"].transform("size") > 1).to_numpy()
            chosen = (chosen - groups[list(columns)].transform("mean"))[several]
            told = told[several]
        prompts = pd.factorize(told["prompt_index"], sort=True)[0]
    values = chosen.to_numpy(float)
    count = int(prompts.max()) + 1 if len(prompts) else 0
    return Scoped(values, prompts, count, _fault(values, columns, scale, scope, count))


def _fault(values: np.ndarray, columns: Sequence[str], scale: np.ndarray, scope: str, count: int) -> str | None:
    """Why these rows tell nothing, or None."""
    where = {"all": "over these images", "between": "between prompts", "within": "within prompts"}[scope]
    if scope == "between" and count < LEAST_ROWS:
        return f"{count} prompt{'s' * (count != 1)}: too few to compare prompts"
    if len(values) < LEAST_ROWS:
        return f"{len(values)} rows: too few {where}"
    for index, column in enumerate(columns):
        if np.ptp(values[:, index]) <= _VARIES * max(scale[index], 1e-300):
            return f"{column} does not vary {where}"
    return None


def _nothing(reason: str) -> Scoped:
    return Scoped(np.empty((0, 0)), np.empty(0, int), 0, reason)


def coupling(frame: pd.DataFrame, x: str, y: str, scope: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Pearson, Spearman, and the least-squares slope of y against x (units of y a unit of x), with intervals."""
    data = scoped(frame, [x, y], scope)
    sizes = {"images": len(data.values) if scope != "between" else None, "prompts": data.count}
    if data.reason:
        nothing = Estimate(None, reason=data.reason).to_json()
        return {**sizes, **dict.fromkeys(COUPLINGS, nothing)}
    first, second = data.values.T
    values = [
        float(stats.pearsonr(first, second).statistic),
        float(stats.spearmanr(first, second).statistic),
        float(stats.linregress(first, second).slope),
    ]
    sums, ranks = Moments(data), [_Ranks(first, data), _Ranks(second, data)]

    def statistic(counts: np.ndarray) -> np.ndarray:
        covariance = sums.covariance(counts)
        return np.stack(
            [pearson_of(covariance), _spearman(ranks, data, counts), covariance[:, 0, 1] / covariance[:, 0, 0]]
        )

    estimates = bootstrap.estimates(values, statistic, data.count)
    return {**sizes, **{name: e.to_json() for name, e in zip(COUPLINGS, estimates, strict=True)}}


def partial(
    frame: pd.DataFrame, x: str, y: str, given: Sequence[str], scope: str, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Correlation of x and y with the columns `given` held fixed, linearly; scope "within" holds the prompt fixed too.

    Both are regressed on `given` (statsmodels OLS) and the residuals correlated; deviations from the prompt's mean
    are the residuals of a regression on the prompt.
    """
    data = scoped(frame, [x, y, *given], scope)
    sizes = {"images": len(data.values), "prompts": data.count}
    if not data.reason and len(data.values) <= len(given) + 2:
        data = _nothing(f"{len(data.values)} rows: too few for {len(given)} columns held fixed")
    if data.reason:
        return {**sizes, "partial": Estimate(None, reason=data.reason).to_json()}
    if np.linalg.matrix_rank(np.corrcoef(data.values.T), tol=1e-9) < data.values.shape[1]:
        return {**sizes, "partial": Estimate(None, reason="columns determine one another").to_json()}
    held = np.column_stack([np.ones(len(data.values)), data.values[:, 2:]])
    left, right = (sm.OLS(data.values[:, index], held).fit().resid for index in (0, 1))
    value = float(stats.pearsonr(left, right).statistic)
    sums = Moments(data)

    def statistic(counts: np.ndarray) -> np.ndarray:
        return partial_of(sums.covariance(counts))[None]

    return {**sizes, "partial": bootstrap.estimates([value], statistic, data.count)[0].to_json()}


class Moments:
    """Sums a prompt, from which the covariance of any resample of prompts follows by one product of matrices."""

    def __init__(self, data: Scoped):
        centred = data.values - data.values.mean(axis=0)  # against cancellation
        self.columns = centred.shape[1]
        products = (centred[:, :, None] * centred[:, None, :]).reshape(len(centred), -1)
        rows = np.column_stack([np.ones(len(centred)), centred, products])
        self.sums = np.zeros((data.count, rows.shape[1]))
        np.add.at(self.sums, data.prompts, rows)

    def covariance(self, counts: np.ndarray) -> np.ndarray:
        """[B, P] counts of drawn prompts -> [B, k, k]."""
        drawn = counts @ self.sums
        total = drawn[:, :1]
        mean = drawn[:, 1 : 1 + self.columns] / total
        second = (drawn[:, 1 + self.columns :] / total).reshape(-1, self.columns, self.columns)
        return second - mean[:, :, None] * mean[:, None, :]


def pearson_of(covariance: np.ndarray) -> np.ndarray:
    """[B, k, k] -> correlation of the first two columns [B]."""
    variance = covariance[:, 0, 0] * covariance[:, 1, 1]
    defined = variance > 1e-30
    return np.where(defined, covariance[:, 0, 1] / np.sqrt(np.where(defined, variance, 1.0)), np.nan)


def partial_of(covariance: np.ndarray) -> np.ndarray:
    """[B, k, k] -> correlation of the first two columns given the others [B]: residual covariances (Schur)."""
    given = covariance[:, 2:, 2:]
    regular = np.linalg.det(given) > 1e-30
    given = np.where(regular[:, None, None], given, np.eye(given.shape[1]))
    cross = covariance[:, :2, 2:]
    residual = covariance[:, :2, :2] - cross @ np.linalg.solve(given, cross.transpose(0, 2, 1))
    return np.where(regular, pearson_of(residual), np.nan)


class _Ranks:
    """A column sorted once, for the ranks of any resample."""

    def __init__(self, values: np.ndarray, data: Scoped):
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.ties = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(ordered)]))
        self.starts = starts
        self.prompts = data.prompts[self.order]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Mid-ranks [B, n] of the rows where prompt p is drawn counts[:, p] times."""
        tied = np.add.reduceat(counts[:, self.prompts], self.starts, axis=1)
        middle = np.cumsum(tied, axis=1) - (tied - 1) / 2
        ranks = np.empty((len(counts), len(self.order)))
        ranks[:, self.order] = middle[:, self.ties]
        return ranks


def _spearman(ranks: list[_Ranks], data: Scoped, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation of every resample [B]: Pearson's of the ranks within the resample."""
    weights = counts[:, data.prompts]
    total = weights.sum(axis=1)
    middle = ((total + 1) / 2)[:, None]
    first, second = (rank(counts) - middle for rank in ranks)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("bn,bn,bn->b", weights, a, b)

    variance = product(first, first) * product(second, second)
    return np.where(variance > 0, product(first, second) / np.sqrt(np.where(variance > 0, variance, 1.0)), np.nan)
