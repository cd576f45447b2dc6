"""A run that is started again with go_on=true: finished, unfinished, or another one."""

from __future__ import annotations

import pytest

GO_ON = ("go_on=true", "callbacks.checkpoint.every_n_train_steps=1", "trainer.limit_val_batches=0")


def test_a_finished_run_is_left_as_it_is_and_an_unfinished_one_goes_on(runs, tmp_path, capsys):
    first = runs.run(tmp_path, *GO_ON)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert runs.run(tmp_path, *GO_ON) == first
    assert f"already finished: {tmp_path}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times

    (tmp_path / "summary.json").unlink()  # as if it had been killed before its report
    assert runs.run(tmp_path, *GO_ON) == first
    assert (tmp_path / "summary.json").exists() and not (tmp_path / "metrics.previous_1.csv").exists()

    with pytest.raises(ValueError, match=r"holds a run with other settings: .*seed=1"):
        runs.run(tmp_path, *GO_ON, "seed=1")
