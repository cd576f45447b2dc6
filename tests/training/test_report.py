from __future__ import annotations

import numpy as np
import pytest

from egrpo.training.report import gains, summarise, table
from egrpo.training.validation import Row, interval, load_rows, save_rows
from egrpo.types import PromptRecord


def row(score: float, split: str = "unseen_prompt", task: str = "color", prompt: str = "a cat") -> Row:
    image = np.full((2, 2, 3), int(score * 100), np.uint8)
    return Row(PromptRecord(prompt, task_type=task, extra={"split": split}), "a plan", image, {"oracle": score})


BEFORE = [row(0.0), row(0.5, task="spatial"), row(1.0, split="unseen_composition"), row(0.9, split="seen")]
AFTER = [row(0.5), row(0.5, task="spatial"), row(0.75, split="unseen_composition"), row(0.1, split="seen")]


def test_interval_is_that_of_a_mean():
    values = np.random.default_rng(3).gamma(2.0, 1.0, size=400)
    low, high = interval(values)
    half = 1.959964 * values.std(ddof=1) / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval(values) == [low, high]


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.25, 0.25]])
def test_interval_without_spread_is_a_point(values):
    assert interval(np.array(values)) == [0.25, 0.25]


def test_gains_are_paired_and_leave_out_seen_prompts():
    gain = gains(BEFORE, AFTER)["oracle"]
    assert gain["mean"] == pytest.approx((0.5 + 0.0 - 0.25) / 3)
    # Pairing: equal shifts of very different prompts have no spread at all.
    shifted = [row(0.1), row(0.9), row(0.4)], [row(0.2), row(1.0), row(0.5)]
    low, high = gains(*shifted)["oracle"]["interval_95"]
    assert high - low < 1e-9 and low == pytest.approx(0.1)


def test_gains_of_different_prompts_are_refused():
    with pytest.raises(ValueError, match="zip"):
        gains(BEFORE, AFTER[:2])


def test_a_summary_leaves_seen_prompts_out_of_all_but_their_split():
    summary = summarise(BEFORE)
    assert summary["oracle"] == pytest.approx(0.5) and summary["prompts"] == 3
    assert summary["by_split"] == {
        "seen": {"oracle": 0.9, "prompts": 1},
        "unseen_composition": {"oracle": 1.0, "prompts": 1},
        "unseen_prompt": {"oracle": 0.25, "prompts": 2},
    }
    assert summary["by_task_type"] == {"color": {"oracle": 0.5, "prompts": 2}, "spatial": {"oracle": 0.5, "prompts": 1}}
    low, high = summary["interval_95"]["oracle"]
    assert 0 <= low < 0.5 < high <= 1


def test_seen_prompts_alone_are_summarised_all_the_same():
    assert summarise([row(0.75, split="seen")])["oracle"] == 0.75


def test_the_table_names_every_measurement():
    text = table({"before": summarise(BEFORE), "temperature_0.7": summarise(AFTER)}, ["oracle"])
    assert text.splitlines()[1].split()[:2] == ["before", "0.500"]
    assert "temperature 0.7" in text and "held-out prompts" in text


def test_rows_come_back_as_they_were_saved(tmp_path):
    save_rows(tmp_path / "validation" / "before.npz", BEFORE)
    again = load_rows(tmp_path / "validation" / "before.npz")
    assert [(r.record, r.plan, r.scores, r.split) for r in again] == [
        (r.record, r.plan, r.scores, r.split) for r in BEFORE
    ]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, BEFORE))
    assert [p.name for p in (tmp_path / "validation").iterdir()] == ["before.npz"]
