from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from egrpo.training.outcome import report_run
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


def dropped(rows: list[Row], name: str) -> list[Row]:
    """The same rows after a validation in which a reward was dropped throughout."""
    return [replace(row, scores={k: v for k, v in row.scores.items() if k != name}) for row in rows]


def with_parts(rows: list[Row]) -> list[Row]:
    return [replace(row, scores={**row.scores, "reward": 0.5, "reward/hps": 0.25}) for row in rows]


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", ["reward/hps", "oracle"])
def test_a_reward_that_was_dropped_throughout_does_not_lose_the_report(tmp_path, where: str, name: str, capsys):
    before, after = with_parts(BEFORE), with_parts(AFTER)
    before, after = (dropped(before, name), after) if where == "before" else (before, dropped(after, name))
    summary = reported(tmp_path, before, after)
    validation = summary["validation"]
    assert name not in validation[where] and name in validation["after" if where == "before" else "before"]
    assert name not in validation["gain"] and validation["gain"]["reward"]["mean"] == 0.0
    assert validation["before"].get("oracle", 0.5) == pytest.approx(0.5)
    assert summary["steps"] == 7 and (tmp_path / "samples" / "before_after.png").exists()
    assert (tmp_path / "curves.png").exists()
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith(where)}
    assert "not measured" in rows[where] or name == "oracle"


def reported(folder: Path, before: list[Row], after: list[Row]) -> dict[str, Any]:
    """What `report_run` leaves of a run whose parts are as they are when it has ended."""
    (folder / "metrics.csv").write_text("step,train/reward\n1,0.5\n2,0.6\n")
    trainer: Any = SimpleNamespace(global_step=7)
    module: Any = SimpleNamespace(
        clock=SimpleNamespace(total={}), seed=0, validation=SimpleNamespace(judges={"oracle": None})
    )
    report_run(folder, trainer, module, {"before": before}, after, {}, 1.0, {})
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("part", ["save_samples", "save_curves", "summarise", "gains", "table", "save_rows"])
def test_no_part_of_the_report_loses_the_run(tmp_path, monkeypatch, caplog, part: str):
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("reward/hps")

    monkeypatch.setattr("egrpo.training.report.save_sheet", lambda *_, **__: None)
    monkeypatch.setattr(f"egrpo.training.outcome.{part}", fail)
    summary = reported(tmp_path, BEFORE, AFTER)
    assert summary["steps"] == 7 and ("after" in summary["validation"]) is (part != "summarise")
    told = [record for record in caplog.records if "could not be reported" in record.getMessage()]
    assert told and all(record.exc_info for record in told)
