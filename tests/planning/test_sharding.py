"""How strategies, named or built, divide a model."""

from __future__ import annotations

import json

import pytest

from egrpo.planning.sharding import Sharding, read_sharding

DEEPSPEED = {"_target_": "lightning.pytorch.strategies.DeepSpeedStrategy"}


@pytest.mark.parametrize(
    "strategy, divisors, offload",
    [
        ("ddp", (1, 1, 1, 1), (False, False)),
        ("auto", (1, 1, 1, 1), (False, False)),
        ("deepspeed_stage_1", (1, 1, 8, 1), (False, False)),
        ("deepspeed_stage_2", (1, 8, 8, 1), (False, False)),
        ("deepspeed_stage_2_offload", (1, 8, 8, 1), (False, True)),
        ("deepspeed_stage_3", (8, 8, 8, 8), (False, False)),
        ("deepspeed_stage_3_offload", (8, 8, 8, 8), (True, True)),
        (DEEPSPEED, (1, 8, 8, 1), (False, False)),  # Lightning's default stage is 2
        ({**DEEPSPEED, "stage": 3, "offload_optimizer": True}, (8, 8, 8, 8), (False, True)),
        ({**DEEPSPEED, "config": {"zero_optimization": {"stage": 1}}, "stage": 3}, (1, 1, 8, 1), (False, False)),
        ("fsdp", (8, 8, 8, 8), (False, False)),
        ("fsdp_cpu_offload", (8, 8, 8, 8), (True, True)),
        (
            {"_target_": "lightning.pytorch.strategies.FSDPStrategy", "sharding_strategy": "SHARD_GRAD_OP"},
            *((1, 8, 8, 1), (False, False)),
        ),
        ({"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"}, (8, 8, 8, 8), (False, False)),
        ({"_target_": "egrpo.training.strategies.FSDP2"}, (8, 8, 8, 8), (False, False)),
        ({"_target_": "egrpo.training.strategies.DeepSpeed", "stage": 3}, (8, 8, 8, 8), (False, False)),
    ],
)
def test_divisors_and_offload_on_eight_devices(strategy, divisors, offload):
    found = read_sharding(strategy, 8)
    assert (found.parameters, found.gradients, found.optimizer, found.reference) == divisors
    assert (found.offload_parameters, found.offload_optimizer) == offload
    assert found.devices == 8


def test_ddp_keeps_gradients_twice_unless_buckets_are_the_gradients():
    ddp = {"_target_": "lightning.pytorch.strategies.DDPStrategy"}
    assert read_sharding("auto", 8).gradient_copies == read_sharding(ddp, 8).gradient_copies == 1
    assert read_sharding({**ddp, "gradient_as_bucket_view": True}, 8).gradient_copies == 0
    assert read_sharding("auto", 1) == Sharding()


def test_deepspeed_keeps_float32_master_weights_and_reads_its_own_file(tmp_path):
    file = tmp_path / "zero.json"
    limits = {"stage3_max_live_parameters": 5, "stage3_max_reuse_distance": 3}  # what is used again soon stays, too
    zero = {"stage": 3, **limits, "offload_optimizer": {"device": "cpu"}}
    file.write_text(json.dumps({"zero_optimization": zero}))
    found = read_sharding({**DEEPSPEED, "config": str(file)}, 4)
    assert found.master_weights and found.live_parameters == 5 and found.offload_optimizer
    assert not read_sharding("fsdp", 4).master_weights


def test_buckets_are_lightnings_unless_set():
    ours = {"_target_": "egrpo.training.strategies.DeepSpeed", "stage": 2}
    for strategy in (ours, "deepspeed_stage_2"):
        assert read_sharding(strategy, 4).reduce_bucket == 200_000_000 and read_sharding(strategy, 4).overlapped
    smaller = read_sharding({**ours, "zero": {"reduce_bucket_size": 1e6, "overlap_comm": False}}, 4)
    assert smaller.reduce_bucket == 1_000_000 and not smaller.overlapped and smaller.stage == 2


@pytest.mark.parametrize(
    "strategy, message",
    [
        ("deepspeed_stage_4", "trainer.strategy=deepspeed_stage_4: Lightning has no such strategy; it has auto, ddp"),
        ({**DEEPSPEED, "config": "nowhere.json"}, "DeepSpeed's config nowhere.json cannot be read"),
        ({"_target_": "lightning.pytorch.strategies.FSDPStrategy", "sharding_strategy": "HALF"}, "HALF"),
        ({"_target_": "lightning.pytorch.strategies.Strategy"}, "does not know how Strategy shards"),
    ],
)
def test_what_is_not_known_is_one_clear_error(strategy, message):
    with pytest.raises(ValueError, match=message):
        read_sharding(strategy, 8)
