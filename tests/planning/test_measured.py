"""Plans against measured runs on the CPU: the shapes world's model, and larger random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from egrpo.algorithm.heads import even_rows
from egrpo.planning import Plan, make_plan
from egrpo.planning import flops as planned
from egrpo.planning.activations import image_bytes, kept_logits, kv_cache_bytes, text_bytes
from egrpo.planning.memory import Phase, phases
from egrpo.planning.standing import all_gradients, standing
from egrpo.planning.workload import Workload
from tests.conf.helpers import composed
from tests.planning.measured import Measured, measure_step, random_janus

WIDE = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 8000, "num_hidden_layers": 4}
DEEP = {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 4000, "num_hidden_layers": 4}
# Long enough for plans that differ: the tokenizer knows the first 438 tokens of a vocabulary and leaves out the others.
SMALL = ["model.max_plan_tokens=14", "model.decode_batch=4"]
CASES = {
    # the shipped model; without CoT, published padding, guided
    "shapes": ["+experiment=shapes_eg_grpo", "rollout.group_size=4"],
    "no_cot": [
        "+experiment=shapes_no_cot",
        "rollout.cfg_weight=1.5",
        "rollout.padding=published",
        "rollout.group_size=4",
    ],
    # 9 million parameters, grouped keys
    "wide": ["+experiment=shapes_eg_grpo", *SMALL, "model.chunk_size=40", "rollout.group_size=3"]
    # ... and the optimizer in the form that takes copies of all weights
    + ["optimizer.fused=null", "+optimizer.foreach=true"],
    # bfloat16, checkpointing, guidance, micro-batches
    "checkpointed": [
        *("+experiment=shapes_eg_grpo", *SMALL, "model.chunk_size=10", "model.dtype=bfloat16"),
        *(
            "+model.gradient_checkpointing=true",
            "rollout.cfg_weight=1.5",
            "rollout.group_size=4",
            "objective.micro_batch_size=4",
        ),
    ],
    # LoRA, chunked rollout, scores of the guided distribution
    "lora": [
        *("+experiment=shapes_eg_grpo", *SMALL, "model.chunk_size=60", "model/adapter=lora"),
        *("rollout.cfg_weight=1.5", "rollout.group_size=2", "rollout.batch_size=2", "objective.logps=guided"),
    ],
}
WITHIN = 0.15


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Plan, Measured]]:
    """Plan and measurement of a case, made once."""
    wide, deep = tmp_path_factory.mktemp("wide"), tmp_path_factory.mktemp("deep")
    random_janus(wide, text={**WIDE, "num_attention_heads": 8, "num_key_value_heads": 4}, codes=4000, side=4)
    random_janus(deep, text={**DEEP, "num_attention_heads": 8, "num_key_value_heads": 8}, codes=3000, side=4)
    folders: dict[str, Path] = {"wide": wide, "checkpointed": deep, "lora": deep}

    @cache
    def once(case: str) -> tuple[Plan, Measured]:
        place = [f"model.path={folders[case]}"] if case in folders else []
        cfg = composed("plan", *CASES[case], *place, "data.prompts_per_step=2")
        return make_plan(cfg), measure_step(cfg, ["a red circle", "a blue disk"])

    return once


@pytest.fixture(params=CASES)
def both(request: pytest.FixtureRequest, run: Callable[[str], tuple[Plan, Measured]]) -> tuple[Plan, Measured]:
    return run(request.param)


def close(value: float) -> object:
    return pytest.approx(value, rel=WITHIN)


def micro_batch(work: Workload) -> Workload:
    return replace(work, rows=work.micro_rows, group_size=work.micro_rows)


def beyond(phase: Phase, plan: Plan, gradients: bool) -> float:
    """Of a phase, what comes and goes: without what stands, and without gradients where those are there before."""
    return phase.total - sum(standing(plan.parts).values()) - gradients * all_gradients(plan.parts)


def test_bytes_of_parameters_gradients_states_and_reference(both):
    plan, measured = both
    rows = standing(plan.parts)
    assert (rows["parameters"], rows["reference"]) == (measured.parameters, measured.reference)
    assert all_gradients(plan.parts) == measured.gradients
    assert rows["optimizer"] == pytest.approx(measured.optimizer, rel=1e-3)  # counts of steps are left out


def test_images_and_tokens_of_a_step(both):
    plan, measured = both
    work = plan.parts.work
    assert work.rows == measured.images
    assert work.rows * work.image_tokens == measured.image_tokens
    assert round(work.rows * measured.lengths.plan_mean) == measured.plan_tokens <= work.rows * plan.limits.plan


def test_key_value_caches(both):
    plan, measured = both
    arch, work, lengths = plan.parts.arch, plan.parts.work, measured.lengths
    rows = work.rollout_rows
    text = kv_cache_bytes(arch, rows, lengths.prompt + lengths.plan_capacity)
    image = kv_cache_bytes(arch, rows * work.cfg_factor, lengths.image_context + work.image_tokens)
    chunks = len(work.chunks)
    if work.cot:
        assert max(measured.caches[:chunks]) == text
    assert max(measured.caches[-chunks:]) == image


def test_peaks_of_drawing_decoding_and_updating(both):
    plan, measured = both
    found = {phase.name: phase for phase in phases(plan.parts, measured.lengths)}
    names = (["plans"] if plan.parts.work.cot else []) + ["images", "pixels"]
    for name in names:
        assert beyond(found[name], plan, gradients=False) == close(measured.peaks[name]), name
    assert beyond(found["update"], plan, gradients=True) == close(measured.peaks["update"])


def test_activations_kept_for_the_backward_pass(both):
    plan, measured = both
    sizes = (plan.parts.arch, plan.parts.work, measured.scored)
    kept = {"text": text_bytes(*sizes), "image": image_bytes(*sizes)}
    for name, saved in measured.saved.items():
        logits = kept_logits(*sizes) if name == "text" else 0
        assert kept[name] + logits == close(measured.kept[name]) and kept[name] == close(saved), name


def test_peak_of_scoring_and_backward(both):
    plan, measured = both
    found = {phase.name: phase for phase in phases(plan.parts, measured.scored)}
    peak = max(beyond(found[name], plan, gradients=True) for name in ("scoring", "backward"))
    assert peak == close(measured.peaks["backward"])


def test_chunk_of_logits_is_the_largest_allocation(run):
    for case in ("wide", "lora"):
        plan, measured = run(case)
        work = plan.parts.work
        positions = even_rows(round(work.micro_rows * measured.scored.plan_mean), work.chunk_size)
        assert measured.largest == close(4 * positions * plan.parts.arch.vocab)


def test_operations(both):
    plan, measured = both
    arch, work, lengths = plan.parts.arch, plan.parts.work, measured.lengths
    micro = (arch, micro_batch(work), measured.scored)
    efforts = {
        "images": planned.images(arch, work, lengths),
        "pixels": planned.pixels(arch, work),
        "reference": planned.scoring(*micro, reference=True),
        "scoring": planned.scoring(*micro),
        "backward": planned.backward(*micro),
    } | ({"plans": planned.plans(arch, work, lengths)} if work.cot else {})
    assert set(efforts) == set(measured.flops)
    for name, effort in efforts.items():
        assert effort.flops == close(measured.flops[name]), name
