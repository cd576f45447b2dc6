"""Every yaml of the algorithm composes, and its keys are its target's keyword arguments."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from egrpo.algorithm import policy_loss

CONF = Path(__file__).parents[2] / "conf"
POLICIES = sorted(path.stem for path in (CONF / "entropy_policy").glob("*.yaml"))
INPUTS = {"advantages", "entropy", "mask", "is_image"}


def load(group, name):
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(overrides=[f"+{group}={name}"])[group]


def test_the_policies_are_all_there():
    names = {"uniform", "entropy_guided", "budget_balanced", "top_entropy", "text_only", "image_only", "quantile"}
    assert names <= set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_yaml_spells_out_every_setting_and_runs(name):
    node = load("entropy_policy", name)
    given = {key: value for key, value in OmegaConf.to_container(node).items() if key not in ("_target_", "_partial_")}
    parameters = inspect.signature(get_method(node._target_)).parameters
    assert set(given) == set(parameters) - INPUTS
    if name in ("uniform", "entropy_guided", "budget_balanced", "top_entropy"):  # the others exist to differ
        defaults = {key: parameters[key].default for key in given}
        assert given == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    shaped, metrics = instantiate(node)(
        torch.tensor([1.0, -1.0]), torch.rand(2, 6), torch.ones(2, 6).bool(), torch.arange(6).expand(2, 6) > 2
    )
    assert shaped.shape == (2, 6)
    assert all(isinstance(value, torch.Tensor) and value.dim() == 0 for value in metrics.values())


def test_variants_change_one_setting():
    base = OmegaConf.to_container(load("entropy_policy", "entropy_guided"))
    changes = {"text_only": {"segments": ["text"]}, "image_only": {"segments": ["image"]}}
    for name, change in {**changes, "quantile": {"threshold": "quantile"}}.items():
        assert OmegaConf.to_container(load("entropy_policy", name)) == {**base, **change}


def test_objective_yaml():
    node = OmegaConf.to_container(load("objective", "grpo"))
    assert node["updates_per_rollout"] == 1  # the published procedure; further keys are the trainer's
    defaults = {key: p.default for key, p in inspect.signature(policy_loss).parameters.items()}
    assert {key: node[key] for key in ("beta", "clip_low", "clip_high")} == {
        key: defaults[key] for key in ("beta", "clip_low", "clip_high")
    }
