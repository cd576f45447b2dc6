"""`python -m egrpo.plan`: published experiments are planned, impossible runs refused with a reason and a way out."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from egrpo.entry import run
from egrpo.plan import plan
from egrpo.planning import make_plan, report, ways_out
from egrpo.planning.architecture import read_architecture
from egrpo.planning.memory import Phase, final_caches
from egrpo.planning.planner import GB, Plan, device_count, expand
from egrpo.training.checks import check_run
from tests.conf.helpers import EXPERIMENTS, composed, root_of

SEVEN = "+experiment=eg_grpo_janus_pro_7b"
# Of the shapes world's, most differ in what takes neither memory nor time.
SHAPES = ["shapes_eg_grpo", "shapes_no_cot", "shapes_paper_rewards"]
PUBLISHED = [name for name in EXPERIMENTS if root_of(name) == "train" and not name.startswith("shapes")]


@cache
def planned(*overrides: str) -> Plan:
    return make_plan(composed("plan", *overrides, "reward_models=nowhere"))


@cache
def published() -> DictConfig:
    return composed("plan", SEVEN, "reward_models=nowhere")


def rows(phases: list[Phase], name: str) -> dict[str, float]:
    return {row: value / GB for row, value in next(p for p in phases if p.name == name).rows.items()}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command; gives its exit code, output and the lines of its error."""

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["egrpo.plan", f"hydra.run.dir={tmp_path}/run", *arguments])
        try:
            run(plan, "plan")
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        return code, out.out, [line for line in out.err.splitlines() if line.startswith("error: ")]

    return call


@pytest.mark.parametrize("name", [*PUBLISHED, *SHAPES])
def test_every_experiment_is_planned(name):
    made = planned(f"+experiment={name}") if name in PUBLISHED else make_plan(composed("plan", f"+experiment={name}"))
    text = report(made)
    assert "KV cache" in text and "total" in text and f"{made.steps:,} rollouts" in text
    assert all(cost.seconds >= 0 for cost in made.costs) and made.step_seconds > 0
    assert ("plan tokens" in text) == made.parts.work.cot
    if name in PUBLISHED:
        images = made.parts.work.rows * made.devices
        assert images == 128 and f"image tokens: {128 * 576:,}" in text
        assert [round(m.parameters / 1e9, 2) for m in made.parts.rewards] == [0.99, 0.39, 0.17, 8.03]


def test_published_sizes():
    seven, one = (read_architecture(composed("plan", f"+experiment=eg_grpo_janus_pro_{n}b")) for n in (7, 1))
    # Published totals are 7.42 and 2.09 billion, with the vision tower's pooling head that transformers drops.
    pooling = 4 * 1024**2 + 2 * 4 * 1024**2
    assert (seven.parameters + pooling) / 1e9 == pytest.approx(7.42, abs=0.005)
    assert (one.parameters + pooling) / 1e9 == pytest.approx(2.09, abs=0.005)
    assert seven.trained == seven.modules["language_model"] + seven.modules["lm_head"] == seven.reference_bytes // 2
    assert seven.parameter_bytes == 2 * seven.parameters and seven.image_tokens == 576


def test_7b_on_eight_devices_is_refused_when_replicated(command):
    code, out, errors = command(SEVEN, "strategy=auto", "device=h100", "reward_models=nowhere")
    assert code == 1 and "8 x H100 SXM 80 GB" in out and "total" in out
    (error,) = errors
    assert re.search(r"needs \d+\.\d GB on each device, and the H100 SXM 80 GB has 80 \(most of it ", error)
    assert "it would fit with " in error
    ways = error.partition("it would fit with ")[2].partition(" (traceback")[0].split(", or with ")
    own = ["strategy=auto", "device=h100"]
    assert all(planned(SEVEN, *given(own, way.split()), *way.split()).fits for way in ways)


def test_7b_on_eight_devices_fits_when_sharded_and_sampled_in_chunks():
    sharded = [SEVEN, "strategy=deepspeed_stage_3", "rollout.batch_size=null"]
    made = planned(*sharded)
    assert not made.fits and made.peak.rows["KV cache"] / GB > 30  # of 16 guided sequences at their limits, and plans
    made = planned(*sharded, "rollout.batch_size=8")
    assert made.peak.total < planned(*sharded).peak.total - 12 * GB
    assert rows(made.at_limits, "rewards")["parameters"] == pytest.approx(2 * made.parts.arch.parameters / 8 / GB)


def test_7b_on_one_large_device_is_refused_with_a_way_out(command):
    one = [SEVEN, "strategy=auto", "optimizer=adamw", "device=h200", "trainer.devices=1", "reward_models=nowhere"]
    tried = "ways_out=['objective.micro_batch_size=1','rollout.batch_size=8']"
    code, out, errors = command(*one, "rollout.batch_size=null", tried)  # the cache of 128 guided sequences
    assert code == 1 and "1 x H200 SXM 141 GB" in out and "peak: " in out
    assert "it would fit with rollout.batch_size=8" in errors[0]
    code, out, errors = command(*one, "rollout.batch_size=8")
    assert code == 0 and not errors and "hours on 1 x H200" in out


def test_lora_trains_the_adapter_alone_and_needs_no_second_reference():
    one = [SEVEN, "strategy=auto", "device=h200", "trainer.devices=1", "rollout.batch_size=8"]
    lora, full = planned(*one, "model/adapter=lora"), planned(*one)
    assert rows(lora.at_limits, "update")["reference"] == 0 and lora.peak.total < full.peak.total
    assert lora.parts.arch.trained < 0.01 * full.parts.arch.trained
    assert lora.parts.arch.parameters == full.parts.arch.parameters + lora.parts.arch.trained


def test_offloaded_rewards_are_there_while_they_score():
    offload = [f"reward.{name}.reward.offload=true" for name in ("hps", "git", "gdino_strict", "orm")]
    here, there = (rows(planned(SEVEN, *more).at_limits, "images") for more in ([], offload))
    assert here["reward models"] == pytest.approx(2 * 8.03 + 2 * (0.9861 + 0.3942) + 4 * 0.1722)
    assert there == {**here, "reward models": 0}
    assert rows(planned(SEVEN, *offload).at_limits, "rewards")["reward models"] == pytest.approx(2 * 8.03)


def test_reward_models_are_counted_where_their_folder_is():
    made = make_plan(composed("plan", "+experiment=shapes_paper_rewards", "trainer.accelerator=auto"))
    assert made.parts.rewards and all(m.source.endswith("config.json") for m in made.parts.rewards)
    assert all(0 < m.parameters < 10e6 for m in made.parts.rewards)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["trainer.devices=auto"], "devices=auto: a plan needs their number"),
        (["trainer.devices=3"], "16 does not divide among 3"),
        (["refuse_at=dawn"], "refuse_at=dawn: choose limits or mean"),
        (["assumptions.compute_efficiency=2"], "it is a share of the peak, 1 at most"),
        (["device.memory_gb=0"], "device.memory_gb=0"),
        (["model.dtype=bfloat61", "trainer.precision=32-true"], "model.dtype=bfloat61 is no type of torch"),
        (["trainer.strategy=deepspeed_stage_9"], "trainer.strategy=deepspeed_stage_9"),
        (["reward.hps.reward._target_=my_lab.Brightness"], "no size of a my_lab.Brightness is in published_rewards"),
    ],
)
def test_settings_out_of_range_are_refused(overrides, message):
    cfg = OmegaConf.merge(published(), OmegaConf.from_dotlist(overrides))
    with pytest.raises((ValueError, InstantiationException), match=re.escape(message)):
        make_plan(cfg)


@pytest.mark.parametrize(
    "override, message",
    [
        ("device=abacus", "device=abacus: there is no such choice; choose from a100_40gb"),
        ("model.path=nowhere", "model.path=nowhere holds no config.json, so its sizes are not known"),
    ],
)
def test_an_error_is_told_without_a_plan(command, override, message):
    code, out, errors = command(SEVEN, "reward_models=nowhere", override)
    assert code == 1 and not out and len(errors) == 1
    assert message in errors[0]


def test_another_model_is_refused(command, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "multi_modality"}')
    _, _, (error,) = command(SEVEN, f"model.path={tmp_path}")
    assert "'multi_modality': a plan needs a Janus" in error


def test_devices_are_a_number_or_a_list():
    assert [device_count(given) for given in (8, "8", [0, 3])] == [8, 8, 2]
    with pytest.raises(ValueError, match="devices=-1"):
        device_count(-1)


def test_a_way_out_for_all_rewards_names_those_that_have_the_setting():
    cfg = composed("plan", SEVEN, "reward=[hps,shapes_oracle]")
    assert expand("reward.*.reward.offload=true", cfg) == ["reward.hps.reward.offload=true"]
    assert expand("rollout.batch_size=8", cfg) == ["rollout.batch_size=8"]
    assert expand("model/adapter=lora threads=2", cfg) == ["model/adapter=lora", "threads=2"]


def test_nothing_is_loaded_or_written_beside_the_hydra_folder(command, tmp_path: Path):
    code, _, _ = command("+experiment=shapes_eg_grpo", "device=cpu")
    assert code == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".hydra", "plan.log"}


def test_caches_that_graphs_read_stay_where_all_weights_are():
    one = ("+experiment=eg_grpo_janus_pro_1b", "strategy=ddp", "device=h200")
    kept, eager = (planned(*one, f"rollout.decoding={way}") for way in ("auto", "eager"))
    plans, images = (size / GB for size in final_caches(kept.parts, kept.limits))  # in multiples of 128 columns
    assert plans > 0 and sum(final_caches(eager.parts, eager.limits)) / GB <= plans + images
    for phase in ("rewards", "backward", "update"):
        assert rows(kept.at_limits, phase)["KV cache"] == pytest.approx(plans + images)
    # Prompts are read into a cache of their own, before it is copied where the graphs read.
    assert rows(kept.at_limits, "images")["KV cache"] >= plans + images
    assert rows(eager.at_limits, "backward")["KV cache"] == 0
    divided = [*one[:1], "strategy=deepspeed_stage_3", "trainer.devices=8", "device=h200"]
    assert rows(planned(*divided).at_limits, "backward")["KV cache"] > 0  # graphs read a copy of the weights
    assert rows(planned(*divided, "rollout.gather=shard").at_limits, "backward")["KV cache"] == 0


LARGE = [SEVEN, "rollout.batch_size=8"]
RUNS = [
    [*LARGE, "device=h100", "trainer.devices=2", "data.prompts_per_step=2"],
    [*LARGE, "device=h100", "trainer.devices=4", "data.prompts_per_step=4"],
    [*LARGE, "device=h200", "trainer.devices=2", "data.prompts_per_step=4", "strategy=ddp"],
    [*LARGE, "device=h100", "trainer.devices=8", "strategy=auto"],
    [*LARGE, "device=h100", "trainer.devices=2", "strategy=fsdp2", "model/adapter=lora", "rollout.batch_size=16"],
]


@pytest.mark.parametrize("run_", RUNS, ids=lambda words: " ".join(words[2:]))
def test_every_way_out_is_one_that_training_accepts(run_):
    made = planned(*run_)
    tried: dict[str, Plan] = {}

    def replan(more: list[str]) -> Plan:
        tried[" ".join(more)] = planned(*given(run_, more), *more)
        return tried[" ".join(more)]

    ways = [] if made.fits else ways_out(made, composed("plan", *run_, "reward_models=nowhere"), replan)
    for way in ways:
        cfg = composed("train", *given([w for w in run_ if not w.startswith("device=")], way.split()), *way.split())
        check_run(cfg)
        assert tried[way].fits
    assert made.fits or ways or all(not plan.fits for plan in tried.values())


def given(words: list[str], more: list[str]) -> list[str]:
    """Overrides that `more` does not replace."""
    return [word for word in words if word.split("=")[0] not in {new.split("=")[0] for new in more}]


@pytest.mark.parametrize(
    "fault, message",
    [
        ([], "model.gradient_checkpointing=true does not go with an adapter"),
        (["rollout.gather=half"], "rollout.gather=half"),
        (["trainer.gradient_clip_val=1"], "trainer.gradient_clip_val=1"),
        (["entropy_policy.segments=[sound]"], "entropy_policy: "),
        (["optimizer.betas=[0.9,2]"], "optimizer: "),
    ],
)
def test_a_plan_is_refused_for_what_training_refuses(fault, message):
    words = [SEVEN, "strategy=deepspeed_stage_3", "model/adapter=lora", *fault]
    words += [f"model.gradient_checkpointing={str(not fault).lower()}"]
    told = []
    for root, judge in (("plan", make_plan), ("train", check_run)):
        cfg = composed(root, *words, "reward_models=nowhere")
        with pytest.raises((ValueError, InstantiationException)) as refused:
            judge(cfg)
        told.append(str(refused.value))
    assert told[0] == told[1] and message in told[0]


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_stage_2"])
def test_an_adapter_goes_with_checkpointing_where_deepspeed_divides_no_weights(strategy):
    check_run(composed("train", SEVEN, f"strategy={strategy}", "model/adapter=lora"))
