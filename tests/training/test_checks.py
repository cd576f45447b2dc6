"""Settings that only a call can check are told before anything is computed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import get_constant_schedule_with_warmup

from egrpo.algorithm import entropy_policies
from egrpo.paths import config_dir
from egrpo.train import train
from egrpo.training.checks import check_entropy_policy, check_optimizer, check_trainer


@pytest.mark.parametrize("name", ["uniform", "entropy_guided", "budget_balanced", "top_entropy"])
def test_the_policies_pass(name: str):
    check_entropy_policy(getattr(entropy_policies, name))


@pytest.mark.parametrize("settings", [{"high_fraction": 0.9}, {"segments": ("sound",)}, {"nonsense": 1}])
def test_a_bad_entropy_policy_is_told(settings):
    with pytest.raises(ValueError, match=r"^entropy_policy: "):
        check_entropy_policy(partial(entropy_policies.entropy_guided, **settings))


def test_bad_optimizers_and_schedules_are_told():
    constant = partial(get_constant_schedule_with_warmup, num_warmup_steps=0)
    check_optimizer(partial(torch.optim.AdamW, lr=1e-3), constant)
    with pytest.raises(ValueError, match=r"^optimizer: .*nonsense"):
        check_optimizer(partial(torch.optim.AdamW, nonsense=1), constant)
    with pytest.raises(ValueError, match=r"^optimizer: .*learning rate"):
        check_optimizer(partial(torch.optim.AdamW, lr=-1.0), constant)
    with pytest.raises(ValueError, match=r"^scheduler: .*nonsense"):
        check_optimizer(torch.optim.AdamW, partial(constant, nonsense=1))


@pytest.mark.parametrize(
    "override, mend",
    [
        ("trainer.accumulate_grad_batches=4", "set its size by data.prompts_per_step"),
        ("trainer.gradient_clip_val=0.5", r"set objective.max_grad_norm=0.5"),
    ],
)
def test_accumulation_and_clipping_by_the_trainer_are_told_by_their_names_here(tmp_path, override: str, mend: str):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        as_it_is, changed = (
            compose("train", [f"run_dir={tmp_path}", "data.train=none_such", *more]) for more in ([], [override])
        )
    check_trainer(as_it_is.trainer)
    with pytest.raises(ValueError, match=f"^{override}: .*{mend}"):
        train(changed)
