"""Plans against the tensors of real runs that two processes divide, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from egrpo.planning import make_plan
from egrpo.planning.standing import preparing_bytes
from egrpo.policy import load_janus
from tests.conf.helpers import composed
from tests.planning.measured import SHAPES, random_janus

TEXT = {
    **{"hidden_size": 256, "intermediate_size": 704, "vocab_size": 8000, "num_hidden_layers": 6},
    **{"num_attention_heads": 8, "num_key_value_heads": 8},
}
RUN = [
    *("+experiment=shapes_eg_grpo", "optimizer=adamw_master", "trainer.devices=2", "trainer.accelerator=cpu"),
    *("model.max_plan_tokens=14", "model.decode_batch=4", "model.dtype=bfloat16", "+model.gradient_checkpointing=true"),
    *("rollout.group_size=4", "rollout.cfg_weight=1.5", "data.prompts_per_step=4", "objective.micro_batch_size=4"),
    *("reward=[python]", "reward.python.reward.function=tests.training.pieces.red_share", "judge=none", "logger=none"),
    *("trainer.max_steps=2", "trainer.limit_val_batches=0", "baseline_temperatures=[]"),
    *(f"callbacks.{name}=null" for name in ("best", "checkpoint", "samples", "entropy")),
]
LENGTHS = ["plan_tokens=14", "longest_plan=1", "prompt_tokens=30", "image_prompt_tokens=6"]
# DeepSpeed's own sizes would be larger than the model.
ZERO = "+trainer.strategy.zero={reduce_bucket_size: 1000000"
STRATEGIES = {
    "ZeRO-2": ["strategy=deepspeed_stage_2", ZERO + "}"],
    "ZeRO-3": [
        "strategy=deepspeed_stage_3",
        ZERO + ", stage3_param_persistence_threshold: 100, stage3_prefetch_bucket_size: 0}",
    ],
    "FSDP2": ["strategy=fsdp2"],
}


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 million trained parameters."""
    folder = tmp_path_factory.mktemp("janus")
    random_janus(folder, text=TEXT, codes=2000, side=4)
    torch.manual_seed(0)
    JanusForConditionalGeneration(JanusConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(folder)
    load_janus(SHAPES)[1].save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_peaks_of_divided_runs(name: str, janus: Path, tmp_path: Path):
    words = [*RUN, *STRATEGIES[name], f"model.path={janus}"]
    recorder = [
        f"+callbacks.alive.{key}" for key in ("_target_=tests.planning.alive.AliveRecorder", f"folder={tmp_path}")
    ]
    command = [sys.executable, "-m", "egrpo.train", *words, *recorder, f"hydra.run.dir={tmp_path}"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("alive_*.json"))]
    plan = make_plan(composed("plan", *words, "device=cpu", *(f"assumptions.{length}" for length in LENGTHS)))
    assert len(ranks) == 2
    peaks = plan.peaks()
    # What is set up already when the first step begins. On a CPU FSDP2's parts are views of whole weights as they were
    # read, so it is taken off on both sides.
    before = peaks["before"] - preparing_bytes(plan.parts)
    if name != "FSDP2":
        assert ranks[0]["before"] == pytest.approx(before, rel=0.01)
    for phase in ("rollout", "rewards", "reference", "scoring", "backward", "optimizer"):
        most = max(rank[phase] - rank["before"] for rank in ranks) + before
        assert peaks[phase] == pytest.approx(most, rel=0.1), phase
