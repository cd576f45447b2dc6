"""Estimates with 95 % intervals by bootstrap over prompts.

A statistic is resampled as a function of counts: how often each of P prompts was drawn. All images of a prompt come
along with it, so that images of one prompt are never taken for independent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]  # counts [B, P] -> [B], or [K, B] for K statistics at once
LEVEL = 0.95
LEAST_DEFINED = 0.9  # share of resamples in which a statistic must be defined to have an interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval. What cannot be told is None, and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high}
        return out if self.reason is None else {**out, "reason": self.reason}


@dataclass(frozen=True)
class Bootstrap:
    """Expanded percentile bootstrap; the same seed draws the same prompts for every statistic of as many prompts.

    Plain percentiles are too narrow for few prompts; `tail` widens them.

    Source: Hesterberg, What Teachers Should Know about the Bootstrap, The American Statistician 69 (2015), for expanded
    percentiles; Davison & Hinkley, Bootstrap Methods and their Application (1997), for clusters as units.
    """

    resamples: int = 2000
    seed: int = 0

    def estimates(self, values: list[float], statistic: Statistic, prompts: int) -> list[Estimate]:
        """Intervals around K values computed from the data themselves.

        Args:
            values: K numbers.
            statistic: counts [B, P] -> [K, B]; NaN where a resample does not define it.
            prompts: P.
        """
        if prompts < 2:
            return [Estimate(value, reason="one prompt: no interval over prompts") for value in values]

        def of_indices(indices: np.ndarray, axis: int = -1) -> np.ndarray:
            flat = indices.reshape(-1, indices.shape[-1])
            return statistic(counts_of(flat, prompts)).reshape(len(values), *indices.shape[:-1])

        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # told by `reason`
            drawn = stats.bootstrap(
                (np.arange(prompts),),
                of_indices,
                vectorized=True,
                axis=-1,
                n_resamples=self.resamples,
                batch=500,
                method="percentile",
                rng=np.random.default_rng(self.seed),
            ).bootstrap_distribution
        return [_estimate(value, row, tail(prompts)) for value, row in zip(values, drawn, strict=True)]

    def mean(self, values: np.ndarray) -> Estimate:
        """The mean of one number a prompt [P], NaN left out."""
        values = np.asarray(values, float)
        values = values[np.isfinite(values)]
        if not len(values):
            return Estimate(None, reason="not measured for any prompt")
        return self.estimates(
            [float(values.mean())], lambda counts: (counts @ values / counts.sum(1))[None], len(values)
        )[0]


def counts_of(indices: np.ndarray, prompts: int) -> np.ndarray:
    """Drawn prompts [B, n] -> how often each was drawn [B, P] float."""
    offset = np.arange(len(indices))[:, None] * prompts
    return np.bincount((indices + offset).ravel(), minlength=len(indices) * prompts).reshape(-1, prompts).astype(float)


def tail(prompts: int) -> float:
    """Share of resamples outside on each side, for P >= 2 prompts: Phi(-sqrt(P / (P - 1)) t), t Student's quantile."""
    quantile = stats.t.ppf((1 + LEVEL) / 2, prompts - 1)
    return float(stats.norm.cdf(-np.sqrt(prompts / (prompts - 1)) * quantile))


def _estimate(value: float, drawn: np.ndarray, outside: float) -> Estimate:
    if not np.isfinite(value):
        return Estimate(None, reason="not defined for these images")
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < LEAST_DEFINED * len(drawn):
        return Estimate(float(value), reason="too few prompts: not defined in more than a tenth of the resamples")
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Estimate(float(value), float(low), float(high))
