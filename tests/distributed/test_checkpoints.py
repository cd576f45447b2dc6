"""A run saved on two ranks goes on on two, exactly, and on one; its export is the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from egrpo.training.checkpoints import find_checkpoint, saved_weights
from tests.distributed.ranks import on_ranks
from tests.distributed.trajectory import SETTINGS
from tests.training.conftest import Runs
from tests.training.pieces import metrics

STEPS = (*SETTINGS, "trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.checkpoint.every_n_train_steps=2")
STEPS += ("objective.micro_batch_size=2", "callbacks.checkpoint.save_top_k=-1", "trainer.precision=32-true")
STRATEGIES = [
    pytest.param(name, marks=marks)
    for name, marks in [
        ("ddp", pytest.mark.slow),
        ("fsdp2", pytest.mark.slow),
        ("deepspeed_stage_2", pytest.mark.slow),
        ("deepspeed_stage_3", pytest.mark.slow),
    ]
]


def run(prompts: Path, folder: Path, *overrides: str) -> None:
    Runs(prompts).run(folder, *STEPS, *overrides)


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in metrics(folder)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_resume_and_export(prompts, tmp_path, name: str):
    two = (f"strategy={name}", "trainer.devices=2")
    whole, parts, one = (tmp_path / part for part in ("whole", "parts", "one"))
    on_ranks(run, tmp_path / "call", prompts, whole, *two, "trainer.max_steps=4")
    middle = find_checkpoint(whole, str(whole / "checkpoints" / "step_000002.ckpt"))
    assert not any("reference" in key for key in saved_weights(middle))

    on_ranks(run, tmp_path / "call", prompts, parts, *two, "trainer.max_steps=4", f"ckpt_path={middle}")
    assert numbers(parts)[-1] == numbers(whole)[-1] and len(numbers(parts)) == 2
    ours, theirs = (saved_weights(find_checkpoint(folder, "last")) for folder in (parts, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)

    alone = (f"strategy={name}", "trainer.devices=1", "trainer.max_steps=4", f"ckpt_path={middle}")
    on_ranks(run, tmp_path / "call", prompts, one, *alone, count=1)
    # The third step's loss and rollout follow from the weights alone.
    third, expected = numbers(one)[0], numbers(whole)[2]
    for key in ("step", "train/loss", "train/kl", "train/reward", "train/grad_norm"):
        assert third[key] == pytest.approx(expected[key], rel=1e-5), key
    check_export(whole, tmp_path / "export")


def check_export(run_folder: Path, target: Path) -> None:
    """The exported directory holds the trained weights, for plain transformers."""
    from omegaconf import OmegaConf
    from transformers import JanusForConditionalGeneration

    from egrpo.export import export

    cfg = OmegaConf.create({"run": str(run_folder), "checkpoint": "last", "target": str(target)})
    export(cfg)
    model: Any = JanusForConditionalGeneration.from_pretrained(target)
    found = model.state_dict()
    for key, value in saved_weights(find_checkpoint(run_folder, "last")).items():
        assert torch.equal(found[key.removeprefix("policy.model.")], value), key
