"""A run saved on two ranks goes on on two, exactly, on one, and under others; its export is the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from egrpo.checkpoints import find_checkpoint, is_divided, saved_ranks, saved_weights, trained_names
from egrpo.sharded import is_sharded
from egrpo.training.saving import local
from egrpo.training.strategies import wait_for_writes
from tests.distributed.pieces import logits
from tests.distributed.ranks import on_ranks
from tests.distributed.trajectory import SETTINGS
from tests.training.conftest import Runs
from tests.training.pieces import metrics

STEPS = (*SETTINGS, "trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.checkpoint.every_n_train_steps=2")
STEPS += ("objective.micro_batch_size=2", "callbacks.checkpoint.save_top_k=-1", "trainer.precision=32-true")
STRATEGIES = ["ddp", "fsdp2", "deepspeed_stage_2", "deepspeed_stage_3", "deepspeed_stage_3_offload"]
# The strategy that writes a checkpoint on two ranks, and the one that goes on from it, on how many.
CHANGES = [
    ("deepspeed_stage_2", "auto", 1),
    ("deepspeed_stage_3", "ddp", 2),
    ("deepspeed_stage_3", "fsdp2", 2),
    ("deepspeed_stage_2", "deepspeed_stage_2", 1),
    ("ddp", "deepspeed_stage_3", 2),
    ("fsdp2", "auto", 1),
    ("fsdp2", "deepspeed_stage_3", 2),
    ("ddp", "fsdp2", 2),
]
# What the step after a checkpoint has from the weights and the position alone.
AT_ONCE = ("step", "train/loss", "train/kl", "train/reward", "train/grad_norm", "train/lr")


def run(prompts: Path, folder: Path, *overrides: str) -> None:
    Runs(prompts).run(folder, *STEPS, *overrides)


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in metrics(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_resume_and_export(prompts, tmp_path, name: str):
    two = (f"strategy={name}", "trainer.devices=2")
    whole, parts, one = (tmp_path / part for part in ("whole", "parts", "one"))
    seen = f"+callbacks.logits={{_target_: tests.distributed.pieces.Logits, file: {tmp_path / 'logits.pt'}}}"
    on_ranks(run, tmp_path / "call", prompts, whole, *two, "trainer.max_steps=4", seen)
    middle = find_checkpoint(whole, str(whole / "checkpoints" / "step_000002.ckpt"))
    assert not any("reference" in key for key in saved_weights(middle))

    on_ranks(run, tmp_path / "call", prompts, parts, *two, "trainer.max_steps=4", f"ckpt_path={middle}")
    assert numbers(parts)[-1] == numbers(whole)[-1] and len(numbers(parts)) == 2
    ours, theirs = (saved_weights(find_checkpoint(folder, "last")) for folder in (parts, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)

    alone = (f"strategy={name}", "trainer.devices=1", "trainer.max_steps=4", f"ckpt_path={middle}")
    on_ranks(run, tmp_path / "call", prompts, one, *alone, count=1)
    check_first(numbers(one)[0], numbers(whole)[2])
    if name == "fsdp2":  # its optimizer is divided anew, so later steps are the same too
        check_first(numbers(one)[1], numbers(whole)[3])
    check_export(whole, tmp_path / "export", torch.load(tmp_path / "logits.pt"))


def check_first(found: dict[str, float], expected: dict[str, float]) -> None:
    for key in AT_ONCE:
        assert found[key] == pytest.approx(expected[key], rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("writer, reader, count", CHANGES)
def test_a_run_goes_on_in_its_folder_under_another_strategy(prompts, tmp_path, writer: str, reader: str, count: int):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    two = (f"strategy={writer}", "trainer.devices=2", "scheduler.num_warmup_steps=8")
    on_ranks(run, tmp_path / "call", prompts, whole, *two, "trainer.max_steps=3")
    on_ranks(run, tmp_path / "call", prompts, parts, *two, "trainer.max_steps=2")
    last = parts / "checkpoints" / "last.ckpt"
    other = (f"strategy={reader}", f"trainer.devices={count}", "scheduler.num_warmup_steps=8", f"ckpt_path={last}")
    on_ranks(run, tmp_path / "call", prompts, parts, *other, "trainer.max_steps=3", count=count)
    rows = numbers(parts)
    assert [row["step"] for row in rows] == [1, 2, 3]
    check_first(rows[2], numbers(whole)[2])
    assert is_divided(last) == reader.startswith("deepspeed") and is_sharded(last) == (reader == "fsdp2")
    assert saved_ranks(last) == (1 if reader in ("auto", "ddp") else count)
    assert sorted(path.name for path in last.parent.iterdir()) == sorted(
        path.name for path in (whole / "checkpoints").iterdir()
    )


def what_fsdp2_saves(prompts: Path, folder: Path) -> dict[str, Any]:
    """How many numbers this rank holds of what it saves, how many there are, and whether any was made whole."""
    words = ("strategy=fsdp2", "trainer.devices=2", "trainer.precision=32-true", "trainer.max_steps=1")
    module = Runs(prompts).fit(folder, *words)
    strategy: Any = module.trainer.strategy
    gathered: list[torch.Tensor] = []
    full_tensor = DTensor.full_tensor
    DTensor.full_tensor = lambda self, **more: gathered.append(self) or full_tensor(self, **more)  # type: ignore
    weights = strategy.lightning_module_state_dict()
    optimizer = strategy.optimizer_state(strategy.optimizers[0])["tensors"]
    strategy.save_checkpoint({"global_step": 1, "state_dict": weights}, folder / "last.ckpt")
    wait_for_writes()
    DTensor.full_tensor = full_tensor  # type: ignore[method-assign]
    return {
        "names": set(weights) == trained_names(module),
        "own": sum(local(value).numel() for value in weights.values()),
        "all": sum(value.numel() for value in weights.values()),
        "optimizer": sum(local(value).numel() for value in optimizer.values() if value.dim()),
        "gathered": len(gathered),
    }


@pytest.mark.slow
def test_each_rank_saves_its_own_part_of_fsdp2_and_gathers_nothing(prompts, tmp_path):
    ranks = on_ranks(what_fsdp2_saves, tmp_path / "call", prompts, tmp_path / "run")
    assert sum(rank["own"] for rank in ranks) == ranks[0]["all"] and all(rank["names"] for rank in ranks)
    for rank in ranks:
        assert 0.4 < rank["own"] / rank["all"] < 0.6 and rank["optimizer"] == 2 * rank["own"]
        assert rank["gathered"] == 0
    sizes = [p.stat().st_size for p in sorted((tmp_path / "run" / "last.ckpt" / "weights").iterdir())]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)


def check_export(run_folder: Path, target: Path, logits_of_run: dict[str, torch.Tensor]) -> None:
    """The exported directory holds the trained weights, and plain transformers makes the run's logits of them."""
    from omegaconf import OmegaConf
    from transformers import JanusForConditionalGeneration

    from egrpo.export import export

    cfg = OmegaConf.create({"run": str(run_folder), "checkpoint": "last", "target": str(target)})
    export(cfg)
    model: Any = JanusForConditionalGeneration.from_pretrained(target)
    found = model.state_dict()
    for key, value in saved_weights(find_checkpoint(run_folder, "last")).items():
        assert torch.equal(found[key.removeprefix("policy.model.")], value), key
    again = logits(model)
    for head, expected in logits_of_run.items():
        assert expected.std() > 0.1 and torch.allclose(again[head], expected, rtol=0, atol=1e-6), head
