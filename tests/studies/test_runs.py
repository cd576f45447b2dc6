"""What is read back from a sweep's folder: whole, failed, partial, damaged and duplicated runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from egrpo.studies.runs import named, read_metrics, read_runs
from egrpo.studies.table import run_table, varied_settings
from tests.studies.made_up import begin_run, make_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    make_run(tmp_path / "a" / "seed_0", 0.7, 0, "beta=1")
    make_run(tmp_path / "b" / "seed_0", 0.8, 0, "beta=2")
    begin_run(tmp_path / "b" / "seed_1", 1, "beta=2")
    (tmp_path / "b" / "seed_1" / "metrics.csv").write_text("step,train/kl\n1,0.1\n2,0.2\n3,0.")
    failed = tmp_path / "b" / "seed_2"
    begin_run(failed, 2, "beta=2")
    (failed / "error.txt").write_text("Traceback\n  somewhere\nIndexError: too far\n\n")
    damaged = make_run(tmp_path / "b" / "seed_3", 0.8, 3, "beta=2")
    (damaged / "summary.json").write_text('{"validation": {')
    shutil.copytree(tmp_path / "a" / "seed_0", tmp_path / "c" / "copy")
    make_run(tmp_path / "c" / "other", 0.75, 0, "beta=1")
    return tmp_path


def test_every_run_is_told_by_what_became_of_it(sweep):
    runs = {run.name: (run.status, run.why) for run in read_runs(sweep)}
    assert runs.pop("b/seed_3")[0] == "unreadable"
    assert runs == {
        "a/seed_0": ("finished", ""),
        "b/seed_0": ("finished", ""),
        "b/seed_1": ("partial", "3 steps so far, no summary.json"),
        "b/seed_2": ("failed", "after 0 steps: IndexError: too far"),
        "c/copy": ("duplicate", "the same settings as a/seed_0, with the same numbers"),
        "c/other": ("duplicate", "the same settings as a/seed_0, with other numbers"),
    }


def test_the_table_has_a_row_a_run_and_a_column_for_what_is_varied(sweep):
    runs = read_runs(sweep)
    assert varied_settings(runs) == ["beta"]
    table = run_table(runs, "strict")
    assert list(table.columns[:6]) == ["run", "status", "why", "setting", "beta", "seed"]
    row = table.set_index("run").loc["b/seed_0"]
    assert (row.beta, row.seed, row.setting, row.commit) == (2.0, 0, "beta=2", "abc")
    assert row.strict == 0.8 and row["strict/seen"] == 0.8 and row["strict@with_plan"] == pytest.approx(0.9)
    assert row["untouched/strict"] == 0.4 and row["gain/strict"] == pytest.approx(0.4)
    assert row["area/strict"] == pytest.approx(0.6)  # straight from .4 to .8
    assert row["start/kl"] == row.kl  # ten steps: the first are the last
    assert row.kl == pytest.approx(0.055) and row.kl_per_point == pytest.approx(0.055 / 40)
    assert (row.images, row.steps, row.seconds) == (10 * 8 * 4, 10, 60.0)
    assert table.set_index("run").loc["b/seed_1"].isna()["strict"]


def test_a_setting_is_called_as_the_study_calls_it_unless_that_means_two(tmp_path):
    make_run(tmp_path / "0", 0.7, 0, "beta=1", setting="plain")
    make_run(tmp_path / "1", 0.7, 1, "beta=2", setting="guided")
    assert list(run_table(read_runs(tmp_path), "strict").setting) == ["plain", "guided"]
    make_run(tmp_path / "2", 0.7, 1, "beta=3", setting="guided")
    assert list(run_table(read_runs(tmp_path), "strict").setting) == ["plain", "guided beta=2", "guided beta=3"]


def test_what_is_set_aside_makes_no_other_setting_and_stays_a_column(tmp_path):
    for seed, place in enumerate(("gpu", "cpu")):
        make_run(tmp_path / place, 0.7, seed, f"trainer.accelerator={place}", setting="plain")
    runs = read_runs(tmp_path)
    assert len(set(run_table(runs, "strict").setting)) == 2
    table = run_table(runs, "strict", ["trainer.accelerator"])
    assert list(table.setting) == ["plain", "plain"]
    assert dict(zip(table.run, table["trainer.accelerator"], strict=True)) == {"gpu": "gpu", "cpu": "cpu"}


def test_where_experiments_alone_differ_they_are_what_is_varied(tmp_path):
    """So were studies made before sweeps had files."""
    for name in ("shapes_grpo", "shapes_eg_grpo"):
        folder = make_run(tmp_path / name, 0.7, 0, f"x={name}")
        summary = (folder / "summary.json").read_text()
        (folder / "summary.json").write_text(summary.replace(f'"x={name}", ', "").replace("shapes_eg_grpo", name))
    assert varied_settings(read_runs(tmp_path)) == ["experiment"]


def test_nothing_gained_has_no_price(tmp_path):
    make_run(tmp_path / "0", 0.3, 0)
    assert "kl_per_point" not in run_table(read_runs(tmp_path), "strict")


@pytest.mark.parametrize("content", ["", "step,train/kl\n"])
def test_an_empty_metrics_file_has_no_steps(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    assert read_metrics(tmp_path / "metrics.csv").empty


def test_overrides_are_named_without_the_signs_of_composing():
    words = ["+experiment=a", "sweep/mixture@_global_=b", "~reward.orm", "+sweep/size=quick", "a.b=c=d"]
    told = {"experiment": "a", "mixture": "b", "reward.orm": "removed", "size": "quick", "a.b": "c=d"}
    assert named(words) == told


@pytest.mark.parametrize("exists, told", [(True, "no run lies in this folder"), (False, "there is no such folder")])
def test_a_folder_without_runs_is_told(tmp_path, exists, told):
    with pytest.raises(ValueError, match=told):
        read_runs(tmp_path if exists else tmp_path / "none")
