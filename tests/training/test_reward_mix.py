"""Rewards mixed by overrides in real runs: weights, normalisation, a failing reward dropped or ending the run."""

from __future__ import annotations

import pytest
import torch

from egrpo.algorithm import group_advantages
from egrpo.rewards import RewardError
from tests.training.pieces import RED

FLAKY = (
    "+reward.flaky={{_target_: egrpo.rewards.WeightedReward, weight: 1.0, on_error: {}, "
    "reward: {{_target_: tests.training.pieces.Brightness, broken_call: 1}}}}"
)


def test_weights_and_leaving_out(runs, tmp_path):
    both = runs.fit(tmp_path, RED, "reward.brightness.weight=0.5", "trainer.max_steps=1")
    _, _, table = both.last_rollout
    assert dict(zip(table.names, table.weights.tolist())) == {"brightness": 0.5, "red": 3.0}
    torch.testing.assert_close(table.total, table.values @ table.weights)
    alone = runs.fit(tmp_path, RED, "~reward.brightness", "trainer.max_steps=1")
    assert alone.last_rollout[2].names == ["red"]


@pytest.mark.parametrize("normalization", ["none", "zscore", "running"])
def test_advantages_come_from_normalised_rewards(runs, tmp_path, normalization):
    module = runs.module(tmp_path, RED, f"normalization={normalization}")
    seen = {}
    update = module.update
    module.update = lambda rollout, advantages, ref: seen.update(a=advantages) or update(rollout, advantages, ref)
    runs.fit(tmp_path, RED, f"normalization={normalization}", "trainer.max_steps=1", module=module)
    values = module.last_rollout[2].values
    within = values.view(-1, 2, 2).std(dim=1)
    scaled = {
        "none": values,
        "zscore": torch.stack([group_advantages(column, 2) for column in values.T], dim=1),
        "running": values / within.square().mean(0).sqrt(),
    }[normalization]
    expected = group_advantages(scaled @ torch.tensor([1.0, 3.0]), 2)
    torch.testing.assert_close(seen["a"], expected, atol=1e-4, rtol=1e-3)
    assert expected.abs().max() > 0.1


def test_a_dropped_reward_is_counted_and_the_run_goes_on(runs, tmp_path):
    rows = [row for row in runs.run(tmp_path, FLAKY.format("drop")) if "train/loss" in row]
    assert len(rows) == 2
    for row in rows:
        assert float(row["train/reward_dropped/flaky"]) == 0.5 and float(row["train/reward_dropped/brightness"]) == 0
        # Both rewards are the same number, so that a renormalised sum is twice it, dropped or not.
        assert float(row["train/reward"]) == pytest.approx(2 * float(row["train/reward/brightness"]), rel=1e-5)
    assert not (tmp_path / "failures").exists()


def test_a_reward_that_stops_the_run_leaves_prompts_and_images(runs, tmp_path):
    with pytest.raises(RewardError, match=r"'flaky' returned nan for 2 of 4 images.*failures/flaky"):
        runs.run(tmp_path, FLAKY.format("stop"))
    assert len(list((tmp_path / "failures" / "flaky").glob("*.png"))) == 2
