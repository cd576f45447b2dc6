"""What a run does not use is not built: the reference without a KL term, rewards of weight 0."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from egrpo.train import build_module, without_idle_rewards
from tests.conf.helpers import composed

MISSING = (
    "+reward.hps={_target_: egrpo.rewards.WeightedReward, weight: 0, reward: "
    "{_target_: egrpo.rewards.HPSReward, path: no/such/folder}}"
)

REFUSED = "reference._target_=tests.training.test_unused_parts.refuse"


def refuse(policy):
    raise AssertionError("the reference is built")


def test_beta_0_neither_builds_nor_runs_the_reference(runs, tmp_path):
    rows = runs.run(tmp_path, "objective.beta=0", "trainer.limit_val_batches=0", REFUSED)
    assert len(rows) == 2
    assert all("train/kl" not in row or not row["train/kl"] for row in rows) and all(row["train/loss"] for row in rows)


def test_the_gradient_of_beta_0_is_that_of_a_vanishing_beta(runs, tmp_path):
    weights = []
    for beta in ("0", "1e-30"):
        module = runs.fit(tmp_path / beta, f"objective.beta={beta}", "trainer.max_steps=1")
        assert (module.reference is None) == (beta == "0")
        weights.append({name: p.detach().clone() for name, p in module.policy.named_parameters() if p.requires_grad})
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=0)


def test_a_reward_of_weight_0_is_not_loaded(runs, tmp_path):
    module = build_module(runs.config(tmp_path, MISSING))
    assert list(module.rewards.rewards) == ["brightness"]
    with pytest.raises(Exception, match="the hps reward finds no model"):
        build_module(runs.config(tmp_path, MISSING, "reward.hps.weight=1"))


def test_where_all_weights_are_0_the_ensemble_refuses():
    cfg = composed("train", "reward.shapes_oracle.weight=0", "reward.shapes_strict.weight=0")
    with pytest.raises(Exception, match="gives no signal"):
        instantiate(without_idle_rewards(cfg).ensemble)


def test_the_configuration_itself_keeps_them():
    cfg = composed("train", "reward.shapes_strict.weight=0")
    before = OmegaConf.to_yaml(cfg)
    assert without_idle_rewards(cfg).reward.shapes_strict is None and OmegaConf.to_yaml(cfg) == before
