"""`callbacks=benchmark`: a fixed part of a benchmark beside training, which does not change the training."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from egrpo.benchmarks import Scores
from egrpo.training.benchmarking import interleaved
from tests.training.conftest import Runs, prompts, runs
from tests.training.pieces import metrics

__all__ = ["Runs", "prompts", "runs"]

BENCHMARK = (
    "callbacks=benchmark",
    "callbacks.benchmark.benchmark.limit=6",
    "callbacks.benchmark.every_n_train_steps=2",
    "callbacks.benchmark.batch_size=4",
    "trainer.max_steps=3",
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.checkpoint.save_top_k=-1",
    "trainer.limit_val_batches=0",
)
KEY = "val/benchmark/shapes/all/oracle_partial_credit"


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory):
    """A run of three steps that is measured before, at the second, and at its end."""
    folder = tmp_path_factory.mktemp("trained")
    runs.run(folder, *BENCHMARK)
    return folder


def test_scores_are_logged_by_step(trained):
    rows = {row["step"]: row for row in metrics(trained) if KEY in row}
    assert list(rows) == ["0", "2", "3"]
    for step, row in rows.items():
        scores = Scores.load(trained / "benchmark" / f"step_{int(step):06d}")
        assert float(row[KEY]) == next(r.score for r in scores.results if r.category == "all" and "credit" in r.method)
        assert len(scores.results[0].values) == 6
        assert "val/benchmark/shapes/unseen_composition/oracle_strictly_right" in row
    steps = [(trained / "benchmark" / f"step_00000{n}" / "images").iterdir() for n in (0, 2, 3)]
    images = [[path.read_bytes() for path in sorted(step)] for step in steps]
    assert images[0] != images[2]  # the policy has moved


def test_training_does_not_depend_on_it(trained, runs, tmp_path):
    plain = runs.run(tmp_path, *[o for o in BENCHMARK if "benchmark" not in o])
    assert plain == [row for row in metrics(trained) if "train/loss" in row]
    weights = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path, trained)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_resumed_run_ends_with_the_same_scores(trained, runs, tmp_path):
    runs.run(tmp_path, *BENCHMARK, f"ckpt_path={trained / 'checkpoints' / 'step_000001.ckpt'}")
    found = {row["step"]: row[KEY] for row in metrics(tmp_path) if KEY in row}
    assert found == {row["step"]: row[KEY] for row in metrics(trained) if row.get("step") in ("2", "3") and KEY in row}


def test_bad_prompts_are_told_before_training(runs, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        runs.run(tmp_path, *BENCHMARK, "callbacks.benchmark.benchmark.prompts=nowhere.jsonl")
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("count, world", [(6, 1), (6, 2), (7, 3), (2, 4)])
def test_what_ranks_draw_comes_back_in_order(count, world):
    padded = [*range(count), *["filler"] * (-count % world)]
    assert interleaved([padded[rank::world] for rank in range(world)])[:count] == list(range(count))


def test_another_benchmark_is_chosen_by_its_name(runs, tmp_path):
    cfg = runs.config(tmp_path, "callbacks=benchmark", "benchmark@callbacks.benchmark.benchmark=geneval")
    callback = instantiate(cfg.callbacks.benchmark)
    assert (callback.benchmark.name, callback.benchmark.limit) == ("geneval", 128)
    with pytest.raises(ValueError, match=r"benchmark\.prompts=PATH"):
        callback.setup(None, None, "fit")


@pytest.mark.parametrize("setting", ["batch_size=0", "every_n_train_steps=-1"])
def test_settings_out_of_range_are_named(setting, runs, tmp_path):
    cfg = runs.config(tmp_path, "callbacks=benchmark", f"callbacks.benchmark.{setting}")
    with pytest.raises(Exception, match=setting):
        instantiate(cfg.callbacks.benchmark)
