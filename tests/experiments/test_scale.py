"""The scale experiment: its prompts are read by the project, its runs compose, its numbers are those of the files."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from egrpo.data import read_prompts
from experiments.scale.__main__ import DEFAULTS, measured, overrides
from experiments.scale.equality import BASES, ROWS, SHAPES
from experiments.scale.prompts import write_prompts
from experiments.scale.runs import Run
from tests.conf.helpers import composed


def test_prompts_are_of_the_published_schema(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl")
    records = read_prompts(tmp_path / "prompts.jsonl")
    assert len(records) == 96 and {r.task_type for r in records} == {"color", "spatial", "object"}
    assert all(len(r.nouns) == 2 for r in records)


@pytest.mark.parametrize("name", [*BASES, *ROWS])
def test_every_row_is_a_run_that_composes(name: str):
    base, words = (name, BASES[name]) if name in BASES else ROWS[name]
    cfg = composed("train", *SHAPES, *words)
    assert base in BASES and cfg.trainer.max_steps == 5 and list(cfg.entropy_policy.segments) == ["text"]


@pytest.mark.parametrize("size", ["7b", "1b", "tiny"])
def test_the_measured_run_is_the_published_one_at_these_sizes(tmp_path, size: str):
    settings = OmegaConf.merge(OmegaConf.create(DEFAULTS), {"size": size, "devices": 2, "checkpoint": True})
    words = overrides(settings, tmp_path, "fsdp2")
    cfg = composed("train", *words)
    assert cfg.rollout.cfg_weight == 5 and cfg.data.prompts_per_step == 4 and cfg.objective.micro_batch_size == 8
    assert cfg.optimizer._target_.endswith("MasterAdamW") and cfg.trainer.strategy._target_.endswith("FSDP2")
    assert len(cfg.reward) == (1 if size == "tiny" else 4)


def test_medians_leave_the_first_step_out(tmp_path):
    """Three steps of 9, 2 and 4 seconds on two ranks; the link to the last state is not counted twice."""
    lines = ["step,train/loss,perf/seconds_step,perf/seconds_rollout,perf/tokens_per_second,perf/decoding"]
    lines += [f"{i},0.1,{seconds},{seconds / 2},100,1" for i, seconds in enumerate((9, 2, 4), start=1)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "recorded").mkdir()
    for rank, peak in enumerate((70.0, 60.0)):
        found = {"device": "card", "before": 50.0, "phases": {"rollout": peak}, "saves": [1.5], "reserved": 80.0}
        (tmp_path / "recorded" / f"rank_{rank}.json").write_text(json.dumps(found))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_3.ckpt").write_bytes(bytes(1000))
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("step_3.ckpt")
    settings = OmegaConf.merge(OmegaConf.create(DEFAULTS), {"devices": 2, "device_spec": None})
    found = measured(Run(tmp_path, []), settings, "fsdp2")
    assert found["step"] == 3 and found["first_step"] == 9 and found["seconds"]["rollout"] == 1.5
    assert found["peak"] == [70.0, 60.0] and found["tokens_a_second"] == 200
    assert found["checkpoint_gb"] == pytest.approx(1e-6) and found["saves"] == [1.5, 1.5]
