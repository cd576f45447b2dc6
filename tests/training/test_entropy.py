"""The view of entropy and reward that training leaves: correlations, maps, histograms."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from egrpo.training.entropy import TILE, EntropyView, RunningCorrelation, entropy_mosaic
from tests.training.pieces import metrics

matplotlib.use("Agg")


def step(seed: int, samples: int = 12) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    entropies = draw.random((samples, 2))
    return draw.random(samples) - entropies[:, 0], entropies


def test_of_one_step_it_is_pearsons():
    rewards, entropies = step(0)
    running = RunningCorrelation()
    running.add(rewards, entropies, 4)
    told = running.metrics()
    assert told["correlation/entropy_mean"] == pytest.approx(np.corrcoef(entropies[:, 0], rewards)[0, 1])
    assert told["correlation/entropy_std"] == pytest.approx(np.corrcoef(entropies[:, 1], rewards)[0, 1])
    within = np.concatenate([values - values.mean() for values in np.split(rewards, 3)])
    own = np.concatenate([values - values.mean() for values in np.split(entropies[:, 1], 3)])
    assert told["correlation_within_group/entropy_std"] == pytest.approx(np.corrcoef(own, within)[0, 1])


def test_what_drifts_over_steps_does_not_count():
    still, drifting = RunningCorrelation(), RunningCorrelation()
    for at in range(5):
        rewards, entropies = step(at)
        still.add(rewards, entropies, 4)
        drifting.add(rewards + 10 * at, entropies - 10 * at, 4)
    assert drifting.metrics() == pytest.approx(still.metrics(), abs=1e-9)


def test_older_steps_fade():
    running = RunningCorrelation(decay=0.5)
    weights, moments = [], []
    for at in range(4):
        rewards, entropies = step(at)
        running.add(rewards, entropies, 4)
        moments.append(np.cov(entropies[:, 0], rewards, ddof=0))
        weights.append(0.5 ** (3 - at))
    total = sum(weight * moment for weight, moment in zip(weights, moments, strict=True))
    expected = total[0, 1] / np.sqrt(total[0, 0] * total[1, 1])
    assert running.metrics()["correlation/entropy_mean"] == pytest.approx(expected)


def test_without_any_spread_there_is_no_correlation():
    running = RunningCorrelation()
    running.add(np.ones(4), np.random.default_rng(0).random((4, 2)), 2)
    assert running.metrics() == {}


def test_its_state_comes_back():
    view, other = EntropyView("."), EntropyView(".")
    view.running.add(*step(0), 4)
    other.load_state_dict(view.state_dict())
    assert other.running.metrics() == view.running.metrics() != {}


def test_a_run_leaves_maps_and_correlations(runs: Any, tmp_path: Any):
    runs.run(tmp_path, "trainer.max_steps=3", "callbacks.entropy.every_n_train_steps=2", "rollout.group_size=4")
    rows = [row for row in metrics(tmp_path) if "train/correlation/entropy_mean" in row]
    assert [row["step"] for row in rows] == ["2"]
    assert set(rows[0]) - {"step"} == {
        f"train/{kind}/entropy_{part}"
        for kind in ("correlation", "correlation_within_group")
        for part in ("mean", "std")
    }
    assert all(-1 <= float(value) <= 1 for name, value in rows[0].items() if name != "step")
    assert [path.name for path in (tmp_path / "samples").glob("entropy_*")] == ["entropy_step_000002.png"]
    assert np.asarray(Image.open(tmp_path / "samples" / "entropy_step_000002.png")).std() > 10


def test_maps_stand_beside_their_images(runs: Any, tmp_path: Any):
    policy = runs.module(tmp_path).policy
    rollout = policy.rollout(["a red circle"], 3, seed=0, step=0, cot=False, cfg_weight=1.0)
    mosaic = entropy_mosaic(rollout, columns=2)
    pair = TILE + TILE + 4
    assert mosaic.shape == (2 * (TILE + 4), 2 * pair, 3)
    assert (mosaic[TILE + 4 :, pair:] == 255).all()  # the place of a fourth image
    assert np.array_equal(mosaic[2 : TILE + 2 : 2, 2 : TILE + 2 : 2], rollout.pixels[0].numpy())
    green = mosaic[2 : TILE + 2, TILE + 2 : 2 * TILE + 2, 1][8::16, 8::16].flatten().astype(int)  # grows with entropy
    in_order = green[rollout.image.entropy[0].argsort().numpy()]
    assert (np.diff(in_order) >= 0).all() and in_order[-1] > in_order[0]
