"""Couplings agree with scipy, hold closed forms, and their intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from egrpo.analysis.correlation import SCOPES, Moments, _Ranks, _spearman, coupling, partial, partial_of, scoped
from egrpo.analysis.resampling import Bootstrap, tail
from tests.analysis import synthetic


def frame_of(x: np.ndarray, y: np.ndarray, **more: np.ndarray) -> pd.DataFrame:
    """[prompts, images] arrays -> a table."""
    prompts = np.repeat(np.arange(x.shape[0]), x.shape[1])
    return pd.DataFrame(
        {"prompt_index": prompts, "x": x.ravel(), "y": y.ravel()} | {k: v.ravel() for k, v in more.items()}
    )


def test_every_scope_agrees_with_scipy() -> None:
    table = synthetic.records(settings=("base_cot",))
    means = table.groupby("prompt_index")[["image_entropy_std", "reward"]].mean()
    deviations = table[["image_entropy_std", "reward"]] - table.groupby("prompt_index")[
        ["image_entropy_std", "reward"]
    ].transform("mean")
    expected = {"all": table, "between": means, "within": deviations}
    for scope in SCOPES:
        x, y = (expected[scope][name].to_numpy() for name in ("image_entropy_std", "reward"))
        found = coupling(table, "image_entropy_std", "reward", scope, Bootstrap(200))
        assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert found["slope"]["value"] == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-9)
        for name in ("pearson", "spearman", "slope"):
            assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_resampled_statistics_are_scipys_on_the_drawn_images() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 5, (8, 6)).astype(float)  # many ties
    y = x + rng.integers(0, 4, x.shape)
    z = rng.normal(size=x.shape)
    data = scoped(frame_of(x, y, z=z), ["x", "y", "z"], "all")
    ranks = [_Ranks(data.values[:, index], data) for index in (0, 1)]
    for _ in range(20):
        drawn = rng.integers(0, 8, 8)
        counts = np.bincount(drawn, minlength=8)[None].astype(float)
        a, b, c = (part[drawn].ravel() for part in (x, y, z))
        covariance = Moments(data).covariance(counts)
        np.testing.assert_allclose(covariance[0], np.cov([a, b, c], ddof=0), atol=1e-12)
        np.testing.assert_allclose(_spearman(ranks, data, counts)[0], stats.spearmanr(a, b).statistic, atol=1e-12)
        held = sm.add_constant(c)
        residuals = [sm.OLS(part, held).fit().resid for part in (a, b)]
        np.testing.assert_allclose(partial_of(covariance)[0], stats.pearsonr(*residuals).statistic, atol=1e-10)


def test_partial_correlation_of_a_table_with_known_one() -> None:
    # Columns z, u, v of unit length, orthogonal to each other and to the constant; x = z + u, y = z + u + 2 v. Given z,
    # u and u + 2 v are left, whose correlation is 1 / sqrt(5); without z it is 2 / sqrt(2 x 6).
    rng = np.random.default_rng(0)
    _, z, u, v = np.linalg.qr(np.column_stack([np.ones(60), rng.normal(size=(60, 3))]))[0].T
    table = frame_of((z + u).reshape(12, 5), (z + u + 2 * v).reshape(12, 5), z=z.reshape(12, 5))
    found = partial(table, "x", "y", ["z"], "all", Bootstrap(200))
    assert found["partial"]["value"] == pytest.approx(1 / np.sqrt(5), abs=1e-12)
    plain = coupling(table, "x", "y", "all", Bootstrap(200))
    assert plain["pearson"]["value"] == pytest.approx(2 / np.sqrt(12), abs=1e-12)


def test_partial_given_prompt_is_that_of_a_regression_on_prompts() -> None:
    table = synthetic.records(settings=("base_cot",))
    dummies = np.column_stack([pd.get_dummies(table["prompt_index"]).to_numpy(float), table["image_entropy_std"]])
    residuals = [sm.OLS(table[name].to_numpy(), dummies).fit().resid for name in ("text_entropy_mean", "reward")]
    found = partial(table, "text_entropy_mean", "reward", ["image_entropy_std"], "within", Bootstrap(200))
    assert found["partial"]["value"] == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-10)


@pytest.mark.parametrize("scope, truth", [("all", 0.5), ("between", 0.8), ("within", 0.2)])
def test_intervals_cover_the_truth(scope: str, truth: float) -> None:
    """Prompt means correlate by .8 and deviations by .2, with equal variances: together by .5.

    Between, what is covered is the correlation of the means of 40 images, whose own noise is small.
    """
    rng = np.random.default_rng(7)
    images = 40 if scope == "between" else 6
    hits, repeats = 0, 200
    for _ in range(repeats):
        centre = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 40)[:, None]
        noise = rng.multivariate_normal([0, 0], [[1, 0.2], [0.2, 1]], (40, images))
        both = centre + noise
        expected = (0.8 + 0.2 / images) / (1 + 1 / images) if scope == "between" else truth
        found = coupling(frame_of(both[..., 0], both[..., 1]), "x", "y", scope, Bootstrap(400))["pearson"]
        hits += found["low"] <= expected <= found["high"]
    assert 0.90 <= hits / repeats <= 0.99, hits / repeats


def test_what_cannot_be_told_is_null_with_a_reason() -> None:
    table = synthetic.records(settings=("base",))
    empty = coupling(table, "text_entropy_mean", "reward", "all", Bootstrap(200))
    assert empty["pearson"] == {
        "value": None, "low": None, "high": None,
        "reason": "text_entropy_mean is empty: it was not measured for these images",
    }  # fmt: skip
    same = coupling(table.assign(reward=0.3), "image_entropy_mean", "reward", "within", Bootstrap(200))
    assert same["slope"]["value"] is None and same["slope"]["reason"] == "reward does not vary within prompts"
    lone = coupling(table[table["image_index"] == 0], "image_entropy_mean", "reward", "within", Bootstrap(200))
    assert lone["pearson"]["reason"] == "0 rows: too few within prompts"
    one = synthetic.records(prompts=1, settings=("base_cot",))
    between = coupling(one, "image_entropy_mean", "reward", "between", Bootstrap(200))
    assert between["pearson"]["reason"] == "1 prompt: too few to compare prompts"
    over = coupling(one, "image_entropy_mean", "reward", "all", Bootstrap(200))["pearson"]
    assert over["value"] is not None and over["low"] is None and "one prompt" in over["reason"]
    copy = table.assign(copy=2 * table["image_entropy_mean"])
    bound = partial(copy, "image_entropy_mean", "reward", ["copy"], "all", Bootstrap(200))
    assert bound["partial"] == {"value": None, "low": None, "high": None, "reason": "columns determine one another"}


def test_a_mean_has_students_interval() -> None:
    """With many resamples, the interval of a mean of normal numbers is close to Student's, for few prompts too."""
    assert tail(10**6) == pytest.approx(0.025, abs=1e-5)
    values = stats.norm.ppf((np.arange(30) + 0.5) / 30)
    found = Bootstrap(20000).mean(values)
    half = stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
    assert found.low == pytest.approx(-half, rel=0.03) and found.high == pytest.approx(half, rel=0.03)
