"""Validation where ranks have different numbers of prompts, or one has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from egrpo.train import build_module
from tests.distributed.ranks import on_ranks
from tests.training.conftest import Runs

CASES = [("ddp", "full"), *[(name, how) for name in ("fsdp2", "deepspeed_stage_3") for how in ("full", "shard")]]


def validated(prompts: Path, folder: Path, count: int, *overrides: str) -> list[tuple[str, str, float]]:
    """Prompt, plan and reward of each validated row."""
    few = folder / "few.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    few.write_text("".join((prompts / "validation.jsonl").read_text().splitlines(keepends=True)[:count]))
    words = (f"data.val={few}", "data.val_batch_size=1", "model.max_plan_tokens=24", *overrides)
    cfg = Runs(prompts).config(folder, *words)
    module, data = build_module(cfg), instantiate(cfg.data)
    trainer: Any = instantiate(cfg.trainer, logger=False, callbacks=[], enable_checkpointing=False)
    trainer.validate(module, datamodule=data, verbose=False)
    return [(row.record.prompt, row.plan, row.scores["reward"]) for row in module.validation.rows]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("strategy, gather", CASES)
def test_every_prompt_is_validated_once(prompts, tmp_path, strategy: str, gather: str, count: int):
    alone = validated(prompts, tmp_path / "alone", count)
    words = (f"strategy={strategy}", f"rollout.gather={gather}", "trainer.devices=2", "trainer.precision=32-true")
    ranks = on_ranks(validated, tmp_path / "call", prompts, tmp_path / "two", count, *words, timeout=120)
    assert len(alone) == count
    for rows in ranks:
        assert [row[:2] for row in rows] == [row[:2] for row in alone]
        assert [row[2] for row in rows] == pytest.approx([row[2] for row in alone], abs=1e-6)
