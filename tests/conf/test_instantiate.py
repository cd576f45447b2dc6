"""What the yaml files name is built: rewards, judges, settings, optimizers, loggers, callbacks, and the module."""

from __future__ import annotations

import os

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from egrpo.rewards import RewardEnsemble
from egrpo.train import build_module
from egrpo.training import GRPOModule, Objective, RolloutSettings
from tests.conf.helpers import EXPERIMENTS, choices_of, composed, root_of

# Whose models and prompts are in the package; the others are planned without weights (tests/planning).
TRAINED = [
    name
    for name in EXPERIMENTS
    if root_of(name) == "train" and composed("train", f"+experiment={name}").model.path.startswith("package:")
]
# Needs nothing but the package itself; W&B would start its service, DeepSpeed its process group.
LOCAL_LOGGERS = [name for name in choices_of("logger") if name != "wandb"]


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize("name", choices_of("optimizer"))
def test_optimizers_take_parameters(name):
    cfg = composed("train", f"optimizer={name}")
    optimizer = instantiate(cfg.optimizer)([parameter()])
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["lr"] == cfg.optimizer.lr


@pytest.mark.parametrize("name", choices_of("scheduler"))
def test_schedulers_take_optimizers(name):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    scheduler = instantiate(composed("train", f"scheduler={name}").scheduler)(optimizer)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)


@pytest.mark.parametrize("name", LOCAL_LOGGERS)
def test_loggers(name, tmp_path):
    loggers = instantiate(composed("train", f"logger={name}", f"run_dir={tmp_path}").logger)
    assert all(isinstance(logger, Logger) for logger in loggers.values())
    assert len(loggers) == (name not in ("csv", "none"))


@pytest.mark.parametrize("name", choices_of("callbacks"))
def test_callbacks(name, tmp_path):
    callbacks = instantiate(composed("train", f"callbacks={name}", f"run_dir={tmp_path}").callbacks)
    assert callbacks and all(isinstance(callback, Callback) for callback in callbacks.values())


@pytest.mark.parametrize("name", choices_of("normalization"))
def test_normalizations(name):
    normalization = instantiate(composed("train", f"normalization={name}").normalization)
    values, mask = torch.rand(4, 2), torch.ones(4, 2, dtype=torch.bool)
    assert normalization(["a", "b"], values, mask, 2).shape == (4, 2)


@pytest.mark.parametrize("name", choices_of("judge"))
def test_judges(name):
    judges = instantiate(composed("train", f"judge={name}").judge, _convert_="object")
    assert isinstance(judges, dict) and all(callable(judge) for judge in judges.values())


def test_trainer(tmp_path):
    cfg = composed("train", "logger=none", f"run_dir={tmp_path}", "trainer.accelerator=cpu")
    trainer = instantiate(cfg.trainer, logger=False, callbacks=[])
    assert isinstance(trainer, Trainer)
    assert trainer.max_steps == cfg.trainer.max_steps
    assert trainer.default_root_dir == os.fspath(tmp_path)


@pytest.mark.parametrize("choices", [[f"cot={name}"] for name in choices_of("cot")] + [["rollout.group_size=3"]])
def test_settings_reach_the_module(choices):
    cfg = composed("train", *choices, "rollout.temperature=0.5", "objective.beta=0.25", "objective.clip_low=0.1")
    module = build_module(cfg)
    assert isinstance(module, GRPOModule)
    assert module.rollout_settings == RolloutSettings(
        group_size=cfg.rollout.group_size, cfg_weight=1.0, temperature=0.5, cot=cfg.rollout.cot, batch_size=None
    )
    assert module.objective == Objective(beta=0.25, clip_low=0.1)


@pytest.mark.parametrize("name", TRAINED)
def test_experiments_build_their_module(name):
    cfg = composed("train", f"+experiment={name}")
    module = build_module(cfg)
    assert isinstance(module.rewards, RewardEnsemble)
    assert {key: r.weight for key, r in module.rewards.rewards.items()} == {
        key: node.weight for key, node in cfg.reward.items()
    }
    n, t = 2, 6
    inputs = (torch.ones(n), torch.rand(n, t), torch.ones(n, t).bool(), torch.arange(t).expand(n, t) > 2)
    token_advantages, _ = module.entropy_policy(*inputs)
    assert token_advantages.shape == (n, t)
    assert module.policy is None  # weights are read when the trainer is ready, not before
