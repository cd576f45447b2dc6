"""Intervals over seeds, and differences paired by seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from egrpo.analysis.resampling import Bootstrap
from egrpo.studies.compare import baseline_of, compare, matching, over_seeds, seeds_needed
from egrpo.studies.text import fragment, left_out, told, verdict


def table(*rows: tuple[str, int, float], status: str = "finished") -> pd.DataFrame:
    columns = ["run", "status", "why", "setting", "seed", "strict", "images", "seconds", "commit"]
    whole = [(f"{name}/{seed}", status, "", name, seed, value, 64.0, 60.0, "abc") for name, seed, value in rows]
    return pd.DataFrame(whole, columns=columns)


def compared(*rows: tuple[str, int, float], baseline: str = "a") -> dict:
    return compare(table(*rows), ["strict"], baseline, Bootstrap(500))


def test_differences_are_paired_by_seed():
    """Seeds differ by far more than settings: only pairing finds the difference."""
    rows = [("a", s, s / 10) for s in range(5)] + [("b", s, s / 10 + 0.01 + s / 1000) for s in range(5)]
    out = compared(*rows)
    assert "differences" not in out["a"] and out["b"]["runs"] == 5
    difference = out["b"]["differences"]["strict"]
    assert difference.estimate.value == pytest.approx(0.012)
    assert 0.01 <= difference.estimate.low < 0.012 < difference.estimate.high <= 0.014
    assert verdict(difference) == "higher"
    wide = out["b"]["measures"]["strict"].estimate
    assert wide.high - wide.low > 0.1


def test_a_seed_that_one_side_lacks_takes_no_part_in_the_difference():
    out = compared(("a", 0, 0.5), ("a", 1, 0.6), ("b", 1, 0.7), ("b", 2, 0.1))
    difference = out["b"]["differences"]["strict"]
    assert difference.estimate.value == pytest.approx(0.1) and difference.seeds == 1
    assert difference.estimate.low is None and "one seed" in difference.estimate.reason
    assert verdict(difference) == "not told apart"


def test_unfinished_runs_take_no_part():
    both = pd.concat([table(("a", 0, 0.5)), table(("a", 1, 0.9), status="failed")], ignore_index=True)
    assert compare(both, ["strict"], "a", Bootstrap(100))["a"]["measures"]["strict"].estimate.value == 0.5
    assert left_out(both) == ["failed: a/1: "]


def test_intervals_cover_as_often_as_the_docstring_says():
    """Of five normal numbers: the bootstrap's is a little narrow, Student's holds."""
    samples = np.random.default_rng(0).normal(size=(1000, 5))
    made = [over_seeds(sample, Bootstrap(300)) for sample in samples]
    bootstrap = np.mean([over.estimate.low <= 0 <= over.estimate.high for over in made])
    student = np.mean([over.student[0] <= 0 <= over.student[1] for over in made])
    assert bootstrap == pytest.approx(0.92, abs=0.02) and student == pytest.approx(0.95, abs=0.02)


def test_student_is_that_of_scipy():
    values = np.array([0.1, 0.4, 0.2])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_seeds(values, Bootstrap(100)).student == pytest.approx((expected.low, expected.high))


def test_a_verdict_needs_both_intervals():
    """Three seeds that agree do not yet tell: Student's interval holds 0."""
    out = compared(*[("a", s, 0.0) for s in range(3)], *[("b", s, v) for s, v in enumerate((0.01, 0.05, 0.1))])
    difference = out["b"]["differences"]["strict"]
    assert difference.estimate.low > 0 > difference.student[0]
    assert verdict(difference) == "not told apart"


def test_seeds_needed_for_a_difference():
    assert seeds_needed(0.033, 0.02) == 22


def test_an_unknown_baseline_is_told():
    rows = table(("a", 0, 0.5), ("b", 0, 0.5))
    assert baseline_of(rows, None) == "a"
    with pytest.raises(ValueError, match="baseline=c: no finished run has this setting; choose of a, b"):
        baseline_of(rows, "c")


def test_measures_are_matched_in_the_order_of_the_patterns():
    assert matching(["strict", "strict@x", "kl", "area/strict"], ["kl", "strict@*", "none"]) == ["kl", "strict@x"]


def test_the_fragment_tells_settings_differences_and_cost():
    rows = table(*[("a", s, 0.5 + s / 100) for s in range(3)], *[("b|c", s, 0.6) for s in range(3)])
    text = fragment(compare(rows, ["strict"], "a", Bootstrap(100)), "a", "strict", rows)
    lines = text.splitlines()
    assert lines[0] == "| setting | seeds | strict | strict minus a, paired |"
    assert lines[2].startswith("| a | 3 | .510 [.5") and lines[2].endswith("| (baseline) |")
    assert lines[3].startswith("| b\\|c | 3 | .600 [.600, .600] | +.090 [+.0")
    assert "0.10 hours of runs, 60 s a run" in text and "abc" in text
    assert "same budget" not in text
    rows.loc[0, "images"] = 32.0
    assert "did not have the same budget" in fragment(compare(rows, ["strict"], "a", Bootstrap(9)), "a", "strict", rows)


@pytest.mark.parametrize("value, text", [(0.5, ".500"), (0.0012, ".0012"), (123.4, "123"), (-0.25, "-.250")])
def test_numbers_are_short(value, text):
    assert told(over_seeds(np.array([value]), Bootstrap(9))) == text
