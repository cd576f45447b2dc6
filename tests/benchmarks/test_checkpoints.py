"""`checkpoints=all`: every checkpoint of a run, the untouched model first, as table and curve."""

from __future__ import annotations

import csv

import pytest

from egrpo.benchmarks import Scores
from tests.benchmarks.evaluating import overrides_for, run
from tests.training.conftest import Runs, prompts, runs

__all__ = ["Runs", "prompts", "runs"]
ALL = (
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.checkpoint.save_top_k=-1",
    "trainer.limit_val_batches=0",
)


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.run(folder, *ALL)
    return folder


def test_every_checkpoint_is_evaluated_and_drawn(trained, tmp_path, capsys):
    settings = [*overrides_for("shapes", tmp_path), f"ckpt_path={trained}"]
    folder = run(tmp_path / "all", *settings, "checkpoints=all")
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["step"] for row in rows)) == ["0", "1", "2"]
    assert {row["category"] for row in rows} == {"all", "unseen_prompt", "unseen_composition"}
    for row in rows:
        results = Scores.load(folder / f"step_{int(row['step']):06d}").results
        (found,) = [r for r in results if (r.category, r.method) == (row["category"], row["method"])]
        assert float(row["score"]) == found.score
        assert [float(row[k]) for k in ("low", "high") if row[k]] == (found.interval or [])
    assert (folder / "curve.png").stat().st_size > 5000
    table = (folder / "table.md").read_text()
    assert all(f"| step {step} | official" in table for step in (0, 1, 2)) and "warning" not in table
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)

    untouched = run(tmp_path / "untouched", *overrides_for("shapes", tmp_path))
    last = run(tmp_path / "last", *settings)
    for step, single in ((0, untouched), (2, last)):
        images = [sorted((f / "images").iterdir()) for f in (folder / f"step_{step:06d}", single)]
        assert [p.read_bytes() for p in images[0]] == [p.read_bytes() for p in images[1]]
    assert Scores.load(untouched).manifest.model != Scores.load(last).manifest.model
    assert "| run, last | official" in (last / "table.md").read_text()


@pytest.mark.parametrize("words", [["checkpoints=all"], ["checkpoints=best", "ckpt_path=RUN"]])
def test_checkpoints_without_a_run_are_refused(words, trained, tmp_path):
    given = [word.replace("RUN", str(trained)) for word in words]
    with pytest.raises(ValueError, match="give checkpoints=all with the folder of a run"):
        run(tmp_path, *overrides_for("shapes", tmp_path), *given)
