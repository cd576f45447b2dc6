from __future__ import annotations

from pathlib import Path

import pytest

from egrpo.training import MetricsFile


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


@pytest.fixture
def written(tmp_path) -> Path:
    """Rows of steps 1 to 3, with a validation after step 2."""
    file = MetricsFile(str(tmp_path))
    file.log_metrics({"train/loss": 0.5, "epoch": 0}, step=1)
    file.log_metrics({"train/loss": 0.25}, step=2)
    file.log_metrics({"val/reward": 1.0}, step=2)
    file.log_metrics({"train/loss": 0.125}, step=3)
    return tmp_path


def test_later_columns_leave_earlier_cells_empty(written):
    assert lines(written) == ["step,train/loss,val/reward", "1,0.5,", "2,0.25,", "2,,1.0", "3,0.125,"]


def test_rows_are_on_disk_at_once(tmp_path):
    file = MetricsFile(str(tmp_path))
    for step in range(3):
        file.log_metrics({"a": step / 3}, step=step)
        assert lines(tmp_path)[-1] == f"{step},{step / 3!r}"


def test_a_resumed_run_drops_what_came_after_its_checkpoint(written):
    file = MetricsFile(str(written), resume=True)
    file.continue_from(2)
    assert lines(written) == ["step,train/loss,val/reward", "1,0.5,", "2,0.25,", "2,,1.0"]
    file.log_metrics({"train/loss": 0.75}, step=3)
    assert lines(written)[-1] == "3,0.75,"
    file.continue_from(1)
    assert lines(written) == ["step,train/loss", "1,0.5"]  # columns that only dropped rows had go with them


@pytest.mark.parametrize("cut", ["4", "2", "4,0.0625", "\x00\x00", ","])
def test_a_last_row_that_a_kill_cut_short_goes(written, cut: str):
    with (written / "metrics.csv").open("a") as stream:
        stream.write(cut)
    file = MetricsFile(str(written), resume=True)
    file.continue_from(3)
    assert lines(written) == ["step,train/loss,val/reward", "1,0.5,", "2,0.25,", "2,,1.0", "3,0.125,"]


def test_what_is_measured_again_replaces_its_row_in_place(written):
    file = MetricsFile(str(written), resume=True)
    file.log_metrics({"val/reward": 1.0}, step=2)
    file.log_metrics({"val/reward": 3.0}, step=3)
    file.log_metrics({"val/reward": 2.0}, step=3)
    expected = ["1,0.5,", "2,0.25,", "2,,1.0", "3,0.125,", "3,,2.0"]
    assert lines(written) == ["step,train/loss,val/reward", *expected]


def test_a_new_run_keeps_the_file_of_the_one_before(written):
    before = (written / "metrics.csv").read_text()
    file = MetricsFile(str(written))
    assert (written / "metrics.previous_1.csv").read_text() == before and not (written / "metrics.csv").exists()
    file.log_metrics({"train/loss": 9.0})
    assert lines(written) == ["step,train/loss", "0,9.0"]


def test_resuming_in_a_new_folder(tmp_path):
    file = MetricsFile(str(tmp_path / "new"), resume=True)
    file.continue_from(50)
    file.log_metrics({"train/loss": 1.0}, step=51)
    assert lines(tmp_path / "new") == ["step,train/loss", "51,1.0"]


def test_no_half_written_file_is_left(written):
    assert [path.name for path in written.iterdir()] == ["metrics.csv"]
