"""The planned size of a checkpoint against a saved one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from lightning.pytorch import Trainer

from egrpo.planning import make_plan
from egrpo.train import build_module
from tests.conf.helpers import composed

TINY = [
    *("+experiment=shapes_eg_grpo", "model.max_plan_tokens=4", "rollout.group_size=2", "data.prompts_per_step=1"),
    *("trainer.max_steps=1", "trainer.limit_val_batches=0", "trainer.accelerator=cpu", "logger=none", "judge=none"),
]


@pytest.mark.parametrize("optimizer, precision", [("adamw", "32-true"), ("adamw_master", "bf16-true")])
def test_a_saved_file_is_as_large_as_planned(tmp_path: Path, optimizer: str, precision: str):
    own = [*TINY, f"run_dir={tmp_path}", f"optimizer={optimizer}", f"trainer.precision={precision}"]
    cfg = composed("train", *own)
    trainer: Trainer = instantiate(
        cfg.trainer, logger=False, callbacks=[], enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(build_module(cfg), datamodule=instantiate(cfg.data))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    plan = make_plan(composed("plan", *own, "device=cpu"))
    assert plan.checkpoint.state == pytest.approx((tmp_path / "saved.ckpt").stat().st_size, rel=0.02)


SEVEN = ("+experiment=eg_grpo_janus_pro_7b", "reward_models=nowhere", "assumptions.disk_gb_s=2")
TRAINED = 6_910_365_696


@pytest.mark.parametrize(
    "strategy, states, staged",
    [
        ("deepspeed_stage_3", 12, 0),  # DeepSpeed writes at once
        ("fsdp2", 12, 14 * TRAINED / 8),
        ("fsdp2 optimizer=adamw", 4, 6 * TRAINED / 8),
        ("auto", 12, 14 * TRAINED),
    ],
)
def test_sizes_by_strategy_and_seconds_at_the_disks_rate(strategy: str, states: int, staged: float):
    found = make_plan(composed("plan", *SEVEN, *f"strategy={strategy}".split())).checkpoint
    assert (found.weights, found.optimizer, found.best) == (2 * TRAINED, states * TRAINED, 0)
    assert found.seconds == (2 + states) * TRAINED / 2e9 and found.staged == staged
    assert found.waiting == (staged / 25e9 if staged else found.seconds)


def test_the_best_state_is_its_weights_unless_more_is_asked_for():
    shapes = ("+experiment=shapes_eg_grpo", "device=cpu")
    for asked, wanted in (("false", "weights"), ("true", "state")):
        found = make_plan(composed("plan", *shapes, f"callbacks.best.save_optimizer={asked}")).checkpoint
        assert found.best == getattr(found, wanted) > 0
