"""Every strategy on two processes takes the steps of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.ranks import on_ranks
from tests.distributed.trajectory import METRICS, difference, trajectory

CELLS = [
    pytest.param(["strategy=ddp"], None, id="ddp"),
    pytest.param(["strategy=ddp"], 1, id="ddp-1", marks=pytest.mark.slow),
    pytest.param(["strategy=ddp"], 2, id="ddp-2", marks=pytest.mark.slow),
    pytest.param(["strategy=ddp"], 4, id="ddp-4", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("overrides, micro_batch_size", CELLS)
def test_two_ranks_take_the_steps_of_one(alone, prompts, tmp_path, overrides: list[str], micro_batch_size: int | None):
    size = f"objective.micro_batch_size={micro_batch_size or 'null'}"
    ranks = on_ranks(trajectory, tmp_path / "call", prompts, tmp_path / "run", "trainer.devices=2", size, *overrides)
    for found in (ranks[0], {**ranks[1], "rows": ranks[0]["rows"]}):
        apart = difference(alone, found)
        assert all(value <= 1e-5 for value in apart.values()), apart


def test_the_trajectory_can_tell(alone):
    """What is compared moves: every metric differs between steps, the weights have left their start."""
    assert all(len({row[name] for row in alone["rows"]}) == 5 for name in METRICS)
    other: dict[str, Any] = {**alone, "weights": {k: v + 2e-5 for k, v in alone["weights"].items()}}
    assert difference(alone, other)["weights"] > 1e-5
    assert all(torch.isfinite(v).all() for v in alone["weights"].values())
