"""Every yaml in conf/ composes, and neither a root nor an experiment holds a key that nothing reads."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException

from tests.conf.helpers import (
    CONF,
    DEBUGS,
    EXPERIMENTS,
    ROOTS,
    check_target,
    choices_of,
    command_module,
    composed,
    defaults_of,
    group_choices,
    key_paths,
    resolved,
    root_of,
    targets,
)

CHOICES = [(root, choice) for root in ROOTS for choice in group_choices(root)]
# What `python -m egrpo.train` reads, and what its parts are made of.
TRAIN_KEYS = {
    *("seed", "ckpt_path", "run_dir", "threads", "baseline_temperatures", "module"),
    *("go_on", "also_validate", "study"),
    *("model", "reference", "data", "rollout", "judge"),
    *("reward", "reward_models", "reward_dtype", "normalization", "ensemble"),
    *("detector_quirks", "detector_precision", "orm_mode", "entropy_policy", "objective"),
    *("optimizer", "scheduler", "trainer", "logger", "callbacks"),
}
# `python -m egrpo.plan` takes a training run and what a plan needs beside it.
PLAN_KEYS = TRAIN_KEYS | {
    *("device", "devices", "architectures", "assumptions", "published_rewards", "refuse_at", "ways_out"),
}
PRETRAIN_KEYS = {
    *("seed", "target", "model", "rollout", "vocab_size", "text", "vq", "codec", "examples", "stages"),
}
ANALYZE_KEYS = {
    *("seed", "run_dir", "prompts", "splits", "num_prompts", "plans_per_prompt", "images_per_plan", "plain_images"),
    *("processes", "model_device", "threads", "settings", "model", "rollout", "report", "entropy_policy", "logger"),
    *("reward", "judge", "ensemble", "reward_models", "reward_dtype", "detector_quirks", "orm_mode"),
    "detector_precision",
}
ROOT_KEYS = {
    **{"train": TRAIN_KEYS, "pretrain": PRETRAIN_KEYS, "export": {"run", "checkpoint", "target"}},
    "plan": PLAN_KEYS,
    "generate": {
        *("model", "prompts", "ckpt_path", "num_images", "seed", "batch_size", "sheets", "shard", "threads", "run_dir"),
        *("model_device", "rollout"),
    },
    "evaluate": {
        *("benchmark", "model", "ckpt_path", "checkpoints", "export", "score", "read_back", "compare", "label", "seed"),
        *(
            "batch_size",
            "shard",
            "model_device",
            "model_name",
            "threads",
            "run_dir",
            "reward_models",
            "rollout",
            "logger",
        ),
    },
    "search": {
        *(
            "name",
            "folder",
            "trials",
            "jobs",
            "threads",
            "overrides",
            "seeds",
            "score",
            "space",
            "sampler",
            "pruner",
            "storage",
        ),
    },
    "dashboard": {"study", "entity", "project", "upload", "target", "group_by", "columns", "sections"},
    "pretrain_rewards": {"seed", "target", "only", "held_out", "networks"},
    "convert": {"kind", "source", "target"},
    "download": {"what", "target", "dry_run", "keep_originals"},
    "analyze": ANALYZE_KEYS,
}
# Mappings whose keys are names of things, so that an experiment may add some.
OPEN_MAPPINGS = (
    *("reward.", "ensemble.rewards.", "judge.", "module.judges.", "logger.", "callbacks.", "settings."),
    *("study.", "also_validate."),
)


@cache
def plain_keys(root: str) -> set[str]:
    """Key paths of the root and of all its choices, each alone."""
    alone = [resolved(root, choice) for choice in group_choices(root)]
    return set().union(*map(key_paths, [resolved(root), *alone]))


def unknown_keys(root: str, cfg: dict[str, Any]) -> set[str]:
    return {path for path in key_paths(cfg) - plain_keys(root) if not path.startswith(OPEN_MAPPINGS)}


def check(root: str, cfg: dict[str, Any]) -> None:
    """The root's keys are those that its command reads, and every target takes its arguments."""
    assert root in ROOT_KEYS, f"tell the keys of the new root conf/{root}.yaml in ROOT_KEYS"
    assert set(cfg) == ROOT_KEYS[root]
    for path, node in targets(cfg):
        check_target(path, node)


def test_every_yaml_is_reached_by_a_test():
    reached = {f"{root}.yaml" for root in ROOTS}
    reached |= {f"experiment/{name}.yaml" for name in EXPERIMENTS} | {f"debug/{name}.yaml" for name in DEBUGS}
    reached |= {f"hydra/launcher/{name}.yaml" for name in choices_of("hydra/launcher")}  # tests/launching
    reached |= {path.relative_to(CONF).as_posix() for path in CONF.glob("sweep/**/*.yaml")}  # tests/studies
    reached |= {"collect/collect.yaml"}  # tests/studies, likewise
    reached |= {f"{g}/{n}.yaml" for g in ("benchmark", "benchmark/judge") for n in choices_of(g)}  # tests/benchmarks
    for root in ROOTS:
        reached |= {f"{group}/{choice}.yaml" for group in defaults_of(root) for choice in choices_of(group)}
    assert {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} == reached


@pytest.mark.parametrize("root", ROOTS)
def test_root_has_a_command_and_composes_with_its_keys_and_valid_targets(root):
    assert command_module(root)
    check(root, resolved(root))


@pytest.mark.parametrize("root, choice", CHOICES)
def test_every_choice_of_every_group_composes_with_its_keys_and_valid_targets(root, choice):
    check(root, resolved(root, choice))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_with_known_keys_and_valid_targets(name):
    root = root_of(name)
    cfg = resolved(root, f"+experiment={name}")
    check(root, cfg)
    assert not unknown_keys(root, cfg), f"conf/experiment/{name}.yaml sets keys that conf/{root}.yaml does not know"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_say_what_they_are_and_how_they_are_run(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    assert f"+experiment={name}" in text
    assert root_of(name) in ROOTS


@pytest.mark.parametrize("name", DEBUGS)
@pytest.mark.parametrize("experiment", [[], *([f"+experiment={e}"] for e in EXPERIMENTS if root_of(e) == "train")])
def test_debug_comes_over_any_experiment(name, experiment):
    cfg = resolved("train", *experiment, f"+debug={name}")
    check("train", cfg)
    assert not unknown_keys("train", cfg)
    assert cfg["trainer"]["max_steps"] == 2


def test_experiments_differ_in_what_their_name_says():
    def changed(name: str) -> set[str]:
        base = resolved("train", "+experiment=shapes_eg_grpo")
        cfg = resolved("train", f"+experiment={name}")
        same = {key for key in base if key in cfg and base[key] == cfg[key]}
        return (set(base) | set(cfg)) - same - {"module"}  # `module` repeats the others

    assert changed("shapes_grpo") == {"entropy_policy"}
    assert changed("shapes_budget_balanced") == {"entropy_policy"}
    assert changed("shapes_text_only") == changed("shapes_image_only") == {"entropy_policy"}
    assert changed("shapes_no_cot") == {"rollout"}
    assert composed("train", "+experiment=shapes_no_cot").rollout.cot is False


@pytest.mark.parametrize(
    "override", ["trainer.max_step=1", "rollout.groupsize=4", "objectiv.beta=0", "reward.shapes_strict.wieght=1"]
)
def test_a_typo_on_the_command_line_is_refused(override):
    with pytest.raises(ConfigCompositionException):
        composed("train", override)


@pytest.mark.parametrize(
    "override, spoiled",
    [
        ("+optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("+trainer.max_step=1", "trainer.max_step"),
        ("+seeed=1", "seeed"),
        ("+module.objective.betta=1", "module.objective.betta"),
    ],
)
def test_a_typo_in_an_experiment_would_be_found(override, spoiled):
    assert unknown_keys("train", resolved("train", override)) - {f"module.{spoiled}"} == {spoiled}


@pytest.mark.parametrize(
    "node, message",
    [
        ({"_target_": "lightning.pytorch.Trainer", "max_step": 1}, "max_step"),
        ({"_target_": "torch.optim.AdamW", "_partial_": True, "betta": 1}, "betta"),
        ({"_target_": "egrpo.policy.JanusPolicy.from_pretrained", "_partial_": True, "chunk": 1}, "chunk"),
        ({"_target_": "egrpo.shapes.reward.OracleReward", "stricct": True}, "stricct"),
        ({"_target_": "egrpo.rewards.WeightedReward", "weight": 1.0}, "reward"),
    ],
)
def test_a_wrong_argument_of_a_target_would_be_found(node, message):
    with pytest.raises((AssertionError, TypeError), match=message):
        check_target("node", node)


@pytest.mark.parametrize("group, count", [("reward", 2), ("reward", 1)])
def test_rewards_are_chosen_together_or_alone(group, count):
    names = choices_of(group)[:count]
    cfg = composed("train", f"{group}=[{','.join(names)}]")
    assert sorted(cfg.reward) == sorted(names)


def test_a_reward_can_be_left_out():
    assert list(composed("train", "~reward.shapes_strict").reward) == ["shapes_oracle"]
