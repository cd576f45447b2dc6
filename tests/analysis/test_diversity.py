"""Vendi scores with known answers, and comparisons at equal numbers of images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from egrpo.analysis import diversity as div


def test_vendi_counts_effectively_different_items() -> None:
    assert div.vendi(np.ones((5, 3))) == pytest.approx(1)
    assert div.vendi(np.eye(4)) == pytest.approx(4)
    assert div.vendi(np.repeat(np.eye(2), 3, axis=0) * 7) == pytest.approx(2)  # length does not count
    cosine = 0.6  # two items: eigenvalues (1 +- cosine) / 2
    share = np.array([(1 + cosine) / 2, (1 - cosine) / 2])
    expected = np.exp(-(share * np.log(share)).sum())
    assert div.vendi(np.array([[1, 0], [cosine, 0.8]])) == pytest.approx(expected)
    assert div.vendi(np.stack([np.eye(3), np.ones((3, 3))])) == pytest.approx([3, 1])
    with pytest.raises(ValueError, match="all 0"):
        div.vendi(np.zeros((2, 3)))


def test_histograms_count_codes() -> None:
    codes = np.array([[0, 0, 3], [1, 3, 3]])
    np.testing.assert_array_equal(div.histograms(codes).todense(), [[2, 0, 0, 1], [0, 1, 0, 2]])


def test_table_compares_equal_numbers_of_images() -> None:
    rows = pd.DataFrame(
        {"prompt_index": [4] * 4 + [9] * 2, "plan_index": [0, 0, 1, 1, 0, 0], "plan": ["a", "a", "b", "b", "c", "c"]}
    )
    vectors = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0.0]])
    found = div.diversity_table(rows, div.kernels(vectors, rows), size=2, seed=0)
    assert found.loc[4].to_dict() == pytest.approx(
        {"vendi": 4, "vendi_equal": 2, "vendi_within_plan": 2, "plans_distinct": 1}
    )
    assert found.loc[9, "vendi"] == pytest.approx(1) and found.loc[9, "plans_distinct"] == 1
    repeated = rows.assign(plan=["a", "a", "a", "a", "c", "c"])
    assert div.diversity_table(repeated, div.kernels(vectors, rows), 2, 0).loc[4, "plans_distinct"] == 0.5
    alone = div.diversity_table(rows.assign(plan=""), div.kernels(vectors, rows), size=1, seed=0)
    assert alone[["vendi_equal", "plans_distinct"]].isna().all(axis=None)
