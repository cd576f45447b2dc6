"""The published experiments: their values, and that every ablation of the paper is an override of them."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.conf.helpers import check_target, composed, resolved, targets

RUN = "+experiment=eg_grpo_janus_pro_7b"
PUBLISHED = [
    *("t2i_r1_janus_pro_7b", "eg_grpo_janus_pro_7b", "eg_grpo_janus_pro_7b_text_only"),
    *("eg_grpo_janus_pro_7b_image_only", "eg_grpo_janus_pro_7b_exact", "eg_grpo_paper_form"),
    *("eg_grpo_janus_pro_1b", "no_cot"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_that_all_share(name):
    cfg = composed("train", f"+experiment={name}")
    assert (cfg.optimizer.lr, cfg.objective.beta, cfg.optimizer.weight_decay) == (1e-6, 0.01, 0.0)
    assert (cfg.rollout.group_size, cfg.rollout.cfg_weight, cfg.rollout.temperature) == (8, 5.0, 1.0)
    assert (cfg.data.prompts_per_step, cfg.objective.micro_batch_size, cfg.trainer.max_steps) == (16, 8, 1600)
    assert (cfg.model.max_prompt_tokens, cfg.model.max_plan_tokens, cfg.model.dtype) == (512, 1024, "bfloat16")
    assert list(cfg.model.trainable) == ["language_model", "lm_head"]
    sharded = name != "eg_grpo_janus_pro_1b"
    assert cfg.trainer.precision == ("bf16-true" if sharded else "32-true")
    kind = OmegaConf.select(cfg, "trainer.strategy._target_")
    assert kind == ("egrpo.training.strategies.FSDP2" if sharded else None)
    assert cfg.optimizer._target_.endswith(".MasterAdamW")  # steps of 1e-6 round away in bfloat16
    assert cfg.objective.logps == "conditional" and cfg.objective.updates_per_rollout == 1
    assert {node.weight for node in cfg.reward.values()} == {1.0} and len(cfg.reward) == 4
    assert cfg.scheduler.num_training_steps == 1600 and cfg.scheduler.num_warmup_steps == 0
    assert "linear" in cfg.scheduler._target_
    assert list(cfg.optimizer.betas) == [0.9, 0.999] and cfg.objective.max_grad_norm == 1.0
    assert cfg.model.gradient_checkpointing is True  # the released trainer turns it on itself
    assert [node.reward.threshold for name, node in cfg.reward.items() if "gdino" in name] == [0.3]


def test_where_they_differ():
    base, eg = resolved("train", "+experiment=t2i_r1_janus_pro_7b"), resolved("train", RUN)
    assert set(base["reward"]) == {"hps", "git", "gdino", "orm"}
    assert set(eg["reward"]) == {"hps", "git", "gdino_strict", "orm"}
    assert base["reward"]["gdino"]["reward"]["rules"] == "original"
    assert base["entropy_policy"]["_target_"].endswith(".uniform")
    assert {key for key in base if base[key] != eg[key]} == {"reward", "entropy_policy", "ensemble", "module"}
    policy = eg["entropy_policy"]
    assert (policy["threshold"], policy["rank_padding"]) == ("order", True)
    assert (policy["bonus_scale"], policy["bonus_cap"]) == (0.3, 0.3)
    assert (policy["high_fraction"], policy["low_fraction"]) == (0.5, 0.2)
    assert eg["rollout"]["padding"] == "published" and eg["model"]["padding"] == "published"
    assert eg["reward"]["gdino_strict"]["reward"]["quirks"] == "reference"
    assert eg["reward"]["orm"]["reward"]["mode"] == "published"
    assert quirks(base) == quirks(eg) == (50, None, False, "policy")

    exact = resolved("train", "+experiment=eg_grpo_janus_pro_7b_exact")
    assert exact["model"]["padding"] == "exact" and not exact["entropy_policy"]["rank_padding"]
    assert quirks(exact) == (None, None, True, "own")
    assert exact["reward"]["gdino_strict"]["reward"]["quirks"] == "fixed"
    for name, segment in (("text_only", "text"), ("image_only", "image")):
        only = resolved("train", f"{RUN}_{name}")["entropy_policy"]
        assert only == policy | {"segments": [segment]}
    paper = resolved("train", "+experiment=eg_grpo_paper_form")
    assert paper["entropy_policy"]["_target_"].endswith(".budget_balanced")
    assert {key for key in paper if paper[key] != exact[key]} == {"entropy_policy", "module"}
    assert resolved("train", "+experiment=no_cot")["rollout"] == eg["rollout"] | {"cot": False}
    small = composed("train", "+experiment=eg_grpo_janus_pro_1b")
    assert small.model.path.endswith("janus_pro_1b") and small.trainer.devices == 1


def quirks(cfg):
    """What plans are drawn from, images, whether plans are stripped, and whose embeddings the reference reads."""
    drawn = cfg["module"]["rollout"]
    kept, read = cfg["model"]["strip_plans"], cfg["reference"]["embeddings"]
    return drawn["plan_top_k"], drawn["top_k"], kept, read


@pytest.mark.parametrize(
    "overrides",
    [
        ["entropy_policy=uniform"],
        ["entropy_policy=budget_balanced", "entropy_policy.kappa=0.5"],
        ["entropy_policy=quantile"],
        ["entropy_policy.high_fraction=0.3", "entropy_policy.bonus_scale=0.5"],
        ["reward=[hps,git]"],
        ["reward=[hps,git,gdino,orm]"],
        ["~reward.orm"],
        ["reward.gdino_strict.weight=0.5", "normalization=zscore"],
        ["cot=off"],
        ["rollout.padding=exact", "detector_quirks=fixed"],
        ["rollout.plan_top_k=null", "rollout.strip_plans=true", "reference.embeddings=own"],
        ["objective.logps=guided"],
        ["model=janus_pro_1b", "trainer.devices=1"],
        ["model/templates=world_knowledge"],
        ["model/adapter=lora", "optimizer.lr=1e-5"],
        ["data=file", "data.train=prompts.txt"],
    ],
)
def test_every_ablation_is_an_override(overrides):
    for path, node in targets(resolved("train", RUN, *overrides)):
        check_target(path, node)
