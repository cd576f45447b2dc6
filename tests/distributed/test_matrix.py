"""Every strategy on two processes takes the steps of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.ranks import on_ranks
from tests.distributed.trajectory import METRICS, difference, trajectory

SHARD = ("rollout.gather=shard",)
# A rank's four samples are drawn in two parts, and scored in passes of three and one.
PARTS = ("rollout.batch_size=2",)
STRATEGIES: list[tuple[str, tuple[str, ...]]] = [
    *[("ddp", ()), ("fsdp2", ()), ("fsdp2", SHARD), ("deepspeed_stage_2", ())],
    *[("deepspeed_stage_3", ()), ("deepspeed_stage_3", SHARD), ("deepspeed_stage_3_offload", ())],
]
# ddp is in the fast suite with groups spread over ranks
FAST = [("fsdp2", (), 2), ("deepspeed_stage_3", (), 2)]
CELLS = [
    pytest.param(
        [f"strategy={name}", *more],
        size,
        id="-".join([name, *more, str(size)]),
        marks=() if (name, more, size) in FAST else pytest.mark.slow,
    )
    for name, settings in STRATEGIES
    for more, size in [*[(settings, size) for size in (1, 2, 4)], ((*settings, *PARTS), 3)]
]


@pytest.mark.parametrize("overrides, micro_batch_size", CELLS)
def test_two_ranks_take_the_steps_of_one(alone, prompts, tmp_path, overrides: list[str], micro_batch_size: int):
    size = f"objective.micro_batch_size={micro_batch_size}"
    overrides = [*overrides, "trainer.precision=32-true"]
    ranks = on_ranks(trajectory, tmp_path / "call", prompts, tmp_path / "run", "trainer.devices=2", size, *overrides)
    assert all(a != b for a, b in zip(ranks[0]["plan_tokens"], ranks[1]["plan_tokens"]))  # or this would show little
    for found in (ranks[0], {**ranks[1], "rows": ranks[0]["rows"]}):
        apart = difference(alone, found)
        assert all(value <= 1e-5 for value in apart.values()), apart


@pytest.mark.slow
def test_weights_that_deepspeed_fetches_ahead(alone, prompts, tmp_path):
    """The shapes model's weights are so small that DeepSpeed leaves them whole; here it divides them and fetches them
    before they are needed, also while a rollout's copy is refreshed."""
    words = ("trainer.devices=2", "strategy=deepspeed_stage_3", "trainer.precision=32-true")
    words += ("+trainer.strategy.zero={stage3_param_persistence_threshold: 100}",)
    ranks = on_ranks(trajectory, tmp_path / "call", prompts, tmp_path / "run", *words)
    apart = difference(alone, ranks[0])
    assert all(value <= 1e-5 for value in apart.values()), apart


@pytest.mark.parametrize(
    "strategy", ["ddp", *[pytest.param(name, marks=pytest.mark.slow) for name in ("fsdp2", "deepspeed_stage_3")]]
)
def test_groups_spread_over_ranks(prompts, tmp_path, strategy: str):
    """Three prompts of four samples on two ranks: the samples of the second prompt lie on both."""
    spread = ("data.prompts_per_step=3", "data.group_across_ranks=true")
    words = (*spread, "trainer.devices=2", f"strategy={strategy}", "trainer.precision=32-true")
    alone = trajectory(prompts, tmp_path / "alone", *spread)
    ranks = on_ranks(trajectory, tmp_path / "call", prompts, tmp_path / "run", *words)
    apart = difference(alone, ranks[0])
    assert all(value <= 1e-5 for value in apart.values()), apart


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_stage_3"])
def test_an_adapter_takes_the_steps_of_one(prompts, tmp_path, strategy: str):
    adapter = ("model/adapter=lora",)
    words = (*adapter, "trainer.devices=2", f"strategy={strategy}", "trainer.precision=32-true")
    alone = trajectory(prompts, tmp_path / "alone", *adapter)
    ranks = on_ranks(trajectory, tmp_path / "call", prompts, tmp_path / "run", *words)
    apart = difference(alone, ranks[0])
    assert all(value <= 1e-5 for value in apart.values()), apart


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_the_released_code_s_quirks_take_the_steps_of_one(prompts, tmp_path, strategy: str):
    """Padding is ranked and padded within a prompt's group, and the reference reads the policy's embeddings: both run
    modules of the policy outside its usual passes, and plans of the two ranks differ in length."""
    quirks = ("entropy_policy=published", "rollout.padding=published", "rollout.strip_plans=false")
    quirks += ("rollout.plan_top_k=50", "reference.embeddings=policy", "objective.micro_batch_size=4")
    words = (*quirks, "trainer.devices=2", f"strategy={strategy}", "trainer.precision=32-true")
    alone = trajectory(prompts, tmp_path / "alone", *quirks)
    ranks = on_ranks(trajectory, tmp_path / "call", prompts, tmp_path / "run", *words)
    apart = difference(alone, ranks[0])
    assert all(value <= 1e-5 for value in apart.values()), apart


def uncured(*arguments: Any) -> dict[str, Any]:
    """A trajectory without the word to DeepSpeed that a new pass begins."""
    from egrpo.training.zero import ZeroEngine

    ZeroEngine.next_pass = lambda self, last: None  # type: ignore[method-assign]
    return trajectory(*arguments)


@pytest.mark.parametrize("strategy", ["deepspeed_stage_2", "deepspeed_stage_3"])
@pytest.mark.slow
def test_without_the_cure_earlier_micro_batches_are_lost(alone, prompts, tmp_path, strategy: str):
    words = ("trainer.devices=2", f"strategy={strategy}", "trainer.precision=32-true")
    words += ("objective.micro_batch_size=1",)
    ranks = on_ranks(uncured, tmp_path / "call", prompts, tmp_path / "run", *words)
    assert difference(alone, ranks[0])["train/grad_norm"] > 0.01


def test_the_trajectory_can_tell(alone):
    """What is compared moves: every metric differs between steps, the weights have left their start."""
    assert all(len({row[name] for row in alone["rows"]}) == 5 for name in METRICS)
    other: dict[str, Any] = {**alone, "weights": {k: v + 2e-5 for k, v in alone["weights"].items()}}
    assert difference(alone, other)["weights"] > 1e-5
    assert all(torch.isfinite(v).all() for v in alone["weights"].values())
