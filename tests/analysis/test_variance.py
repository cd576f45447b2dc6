"""Components of variance: planted ones are recovered, mean squares are those of statsmodels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from egrpo.analysis.resampling import Bootstrap
from egrpo.analysis.variance import LEVELS, variance_shares


def planted(
    rng: np.random.Generator, prompts: int, plans: int, images: int, spreads: tuple[float, ...]
) -> pd.DataFrame:
    index = np.indices((prompts, plans, images)).reshape(3, -1)
    prompt, plan, image = (
        rng.normal(scale=spread, size=shape)
        for spread, shape in zip(spreads, [(prompts, 1, 1), (prompts, plans, 1), (prompts, plans, images)])
    )
    reward = (prompt + plan + image).ravel()
    return pd.DataFrame({"prompt_index": index[0], "plan_index": index[1], "reward": reward})


def values(found: dict, kind: str) -> np.ndarray:
    return np.array([found[kind][level]["value"] for level in LEVELS])


def test_planted_components_are_recovered_without_bias() -> None:
    rng = np.random.default_rng(0)
    repeats = [variance_shares(planted(rng, 20, 4, 4, (1.0, 0.5, 2.0)), "reward", Bootstrap(100)) for _ in range(60)]
    components = np.stack([values(found, "components") for found in repeats])
    error = components.std(axis=0) / np.sqrt(len(components))
    assert (np.abs(components.mean(axis=0) - [1.0, 0.25, 4.0]) < 3 * error).all()
    large = variance_shares(planted(rng, 1500, 4, 4, (1.0, 0.5, 2.0)), "reward", Bootstrap(100))
    np.testing.assert_allclose(values(large, "shares"), np.array([1, 0.25, 4]) / 5.25, atol=0.02)
    for level in LEVELS:
        share = large["shares"][level]
        assert share["low"] < share["value"] < share["high"]


def test_balanced_components_are_those_of_the_analysis_of_variance() -> None:
    table = planted(np.random.default_rng(1), 6, 3, 4, (1.0, 1.0, 1.0))
    table["cell"] = table["prompt_index"] * 3 + table["plan_index"]
    by_prompt, by_cell = (anova_lm(ols(f"reward ~ C({name})", table).fit()) for name in ("prompt_index", "cell"))
    between, image = by_prompt["mean_sq"].iloc[0], by_cell["mean_sq"].iloc[1]
    plan = (by_cell["sum_sq"].iloc[0] - by_prompt["sum_sq"].iloc[0]) / (6 * 2)
    expected = [(between - plan) / 12, (plan - image) / 4, image]
    np.testing.assert_allclose(values(variance_shares(table, "reward", Bootstrap(100)), "components"), expected)


def test_unequal_numbers_of_plans_and_images_do_not_bias() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(60):
        table = planted(rng, 25, 4, 4, (1.0, 1.0, 1.0))
        number = np.arange(len(table)) % 16
        keep = (number < 4) | ((table["prompt_index"] % 2 == 0) & (number % 4 < 1 + table["plan_index"]))
        found.append(values(variance_shares(table[keep], "reward", Bootstrap(100)), "components"))
    components = np.stack(found)
    assert (np.abs(components.mean(axis=0) - 1) < 3 * components.std(axis=0) / np.sqrt(len(found))).all()


def test_what_the_design_cannot_tell_is_null_with_a_reason() -> None:
    table = planted(np.random.default_rng(3), 10, 3, 3, (1.0, 1.0, 1.0))
    plain = variance_shares(table[table["plan_index"] == 0], "reward", Bootstrap(100))
    assert plain["shares"]["plan"]["value"] is None and plain["shares"]["plan"]["reason"] == "one plan a prompt"
    assert plain["shares"]["prompt"]["value"] + plain["shares"]["image"]["value"] == pytest.approx(1)
    single = variance_shares(table.drop_duplicates(["prompt_index", "plan_index"]), "reward", Bootstrap(100))
    assert single["components"]["plan"]["reason"] == "one image a plan: plan and image cannot be told apart"
    for broken, told in (
        (table[table["prompt_index"] == 0], "one prompt"),
        (table.drop_duplicates("prompt_index"), "one image a prompt"),
        (table.assign(reward=1.0), "the same for all images"),
        (table.assign(reward=np.nan), "empty"),
    ):
        share = variance_shares(broken, "reward", Bootstrap(100))["shares"]["prompt"]
        assert share["value"] is None and told in share["reason"]
