"""What each strategy keeps and takes, against real parts and against sizes that its sources name."""

from __future__ import annotations

from functools import cache

import pytest

from egrpo.planning import Plan, make_plan
from egrpo.planning.standing import all_gradients, held_gradients, preparing_bytes, reducing, standing, update_bytes
from egrpo.policy.rollout_copy import BUCKET, RolloutCopy
from tests.conf.helpers import composed
from tests.planning.measured import build_policy

SEVEN = ("+experiment=eg_grpo_janus_pro_7b", "reward_models=nowhere", "device=h200")
TRAINED = 6_910_365_696  # parameters: 30 layers, embedding, norm and head of Janus-Pro-7B
WHOLE = 7_408_000_000  # of the model, roughly
LARGEST = 102_400 * 4096  # the embedding, or the head
LAYER = 4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096
GB = 1e9


@cache
def planned(*overrides: str) -> Plan:
    return make_plan(composed("plan", *SEVEN, *overrides))


def test_a_rollout_copy_takes_what_is_planned():
    for adapter in ([], ["model/adapter=lora"]):
        own = ("strategy=fsdp2", "trainer.devices=2", "trainer.precision=32-true", *adapter)
        cfg = composed("plan", "+experiment=shapes_eg_grpo", *own)
        plan, policy = make_plan(cfg), build_policy(cfg)
        copied = sum(p.nbytes for p in RolloutCopy(policy.model)._parts.parameters())
        assert plan.parts.arch.copy_bytes == copied == standing(plan.parts)["rollout copy"] > 0
    shard = make_plan(composed("plan", "+experiment=shapes_eg_grpo", "strategy=fsdp2", "rollout.gather=shard"))
    assert standing(shard.parts)["rollout copy"] == 0 and shard.parts.decoding == "eager"


def test_published_sizes_that_strategies_divide():
    arch = planned("strategy=fsdp2", "trainer.devices=2").parts.arch
    assert arch.trained == TRAINED and arch.largest == LARGEST and arch.largest_layer == LAYER
    assert arch.around == 2 * LARGEST + 4096 and arch.trained == 30 * LAYER + arch.around
    assert arch.outside_bytes == arch.parameter_bytes - 2 * TRAINED
    assert arch.parameters == pytest.approx(WHOLE, rel=1e-4)


def test_zero_2_divides_states_and_sums_but_not_what_autograd_holds():
    parts = planned("strategy=deepspeed_stage_2", "trainer.devices=4").parts
    rows = standing(parts)
    assert rows["parameters"] == parts.arch.parameter_bytes and rows["reference"] == 2 * TRAINED
    assert rows["optimizer"] == 12 * TRAINED / 4 and rows["gradients"] == 0 == rows["rollout copy"]
    # Two micro-batches: the sum of this part so far, and the new gradients of it.
    assert held_gradients(parts) == all_gradients(parts) == 2 * TRAINED / 4
    assert reducing(parts) == 2 * (2 * 200_000_000 + LARGEST)  # Lightning's buckets, and the largest weight's own
    assert update_bytes(parts) == (2 + 4) * TRAINED / 4  # joined, then float32
    assert preparing_bytes(parts) == 2 * TRAINED  # one flat tensor next to the loaded weights
    phases = {phase.name: phase for phase in planned("strategy=deepspeed_stage_2", "trainer.devices=4").at_mean}
    # Images' gradients wait for those of plans, while the device that holds the text head makes room for its own.
    assert phases["backward"].rows["gradients"] == 2 * (2 * TRAINED / 4) + 2 * (TRAINED - LARGEST)


def test_zero_3_keeps_a_copy_a_bucket_and_its_part_of_the_gradients():
    parts = planned("strategy=deepspeed_stage_3", "trainer.devices=2").parts
    rows = standing(parts)
    assert rows["parameters"] == parts.arch.parameter_bytes / 2 and rows["reference"] == TRAINED
    assert rows["optimizer"] == 12 * TRAINED / 2 and rows["gradients"] == 2 * TRAINED / 2 + 2 * 200_000_000
    assert 2 * TRAINED < rows["rollout copy"] == parts.arch.copy_bytes < parts.arch.parameter_bytes
    assert preparing_bytes(parts) == 4 * TRAINED / 2  # float32 weights are made by way of another copy
    assert parts.caches_stay and parts.decoding == "compiled"
    away = standing(planned("strategy=deepspeed_stage_3_offload", "trainer.devices=2").parts)
    assert away["parameters"] == away["reference"] == away["optimizer"] == 0
    assert away["gradients"] == 2 * 200_000_000 and away["rollout copy"] == parts.arch.copy_bytes


def test_fsdp2_divides_the_language_model_alone():
    parts = planned("strategy=fsdp2", "trainer.devices=2").parts
    rows = standing(parts)
    assert rows["parameters"] == parts.arch.outside_bytes + TRAINED
    assert rows["optimizer"] == 12 * TRAINED / 2 and rows["gradients"] == 0
    assert rows["gathered weights"] == 2 * (2 * LARGEST + 4096)  # the reference's, which nothing divides again
    assert update_bytes(parts) == 4 * BUCKET  # masters are stepped a bucket at a time
    plain = planned("strategy=fsdp2", "trainer.devices=2", "optimizer=adamw").parts
    assert standing(plain)["optimizer"] == 2 * 2 * TRAINED / 2 and update_bytes(plain) == 0


def test_lora_is_captured_and_not_fused():
    assert planned("strategy=fsdp2", "model/adapter=lora").parts.decoding == "captured"
    assert planned("strategy=fsdp2", "rollout.decoding=eager").parts.decoding == "eager"


def test_peaks_have_the_names_of_a_runs_clock():
    plan = planned("strategy=fsdp2", "trainer.devices=2")
    peaks, limits = plan.peaks(), plan.peaks("limits")
    names = ["before", "rollout", "rewards", "reference", "padding", "scoring", "backward", "optimizer", "checkpoint"]
    assert list(peaks) == list(limits) == [*names, "run"]
    assert peaks["run"] == max(peaks[name] for name in names) and limits["run"] == plan.peak.total
    assert list(plan.seconds) == ["rollout", "rewards", "reference", "padding", "scoring", "backward", "optimizer"]
    assert sum(plan.seconds.values()) == pytest.approx(plan.step_seconds)
