"""Unknown keys are refused with the nearest name, and values that their receiver cannot take with what is allowed."""

from __future__ import annotations

import copy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from egrpo.base.errors import UserError
from egrpo.settings import check_settings
from tests.conf.helpers import CONF, EXPERIMENTS, ROOTS, composed, root_of

PARSER = OverridesParser.create()
whole = cache(composed)  # composing takes most of the time


def changed(root: str, *overrides: str) -> DictConfig:
    """The root's configuration with keys set or added; what chooses a group is composed."""
    choices = [o for o in overrides if o.startswith(("+experiment", "+sweep", "+debug", "reward=", "benchmark="))]
    cfg = copy.deepcopy(whole(root, *choices))
    for override in PARSER.parse_overrides([o for o in overrides if o not in choices]):
        key = override.key_or_group
        if override.is_delete():
            above, _, name = key.rpartition(".")
            with open_dict(cfg):
                del OmegaConf.select(cfg, above)[name]
        elif override.is_add():
            OmegaConf.update(cfg, key, override.value(), force_add=True)
        else:
            OmegaConf.select(cfg, key, throw_on_missing=True)
            OmegaConf.update(cfg, key, override.value(), merge=True)
    return cfg


def refusal(root: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        check_settings(changed(root, *overrides), root)
    return str(caught.value)


@pytest.mark.parametrize("root", ROOTS)
def test_every_command_accepts_its_own_configuration(root):
    check_settings(changed(root), root)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_accepted(name):
    check_settings(composed(root_of(name), f"+experiment={name}"), root_of(name))


UNKNOWN = [
    ("train", "+objective.bta=0.5", "objective.bta: there is no such setting; did you mean beta?"),
    ("train", "+rollout.temprature=2", "rollout.temprature: there is no such setting; did you mean temperature?"),
    ("train", "+optimzer.lr=1", "optimzer: there is no such setting; did you mean optimizer?"),
    (
        "train",
        "+optimizer.weigth_decay=1",
        "optimizer.weigth_decay: there is no such setting (torch.optim.AdamW); did you mean weight_decay?",
    ),
    (
        "train",
        "+trainer.max_step=1",
        "trainer.max_step: there is no such setting (lightning.pytorch.Trainer); did you mean max_steps?",
    ),
    ("train", "+sed=1", "sed: there is no such setting; did you mean seed?"),
    (
        "train",
        "+reward.shapes_strict.wieght=1",
        "reward.shapes_strict.wieght: there is no such setting (egrpo.rewards.WeightedReward); did you mean weight?",
    ),
    (
        "train",
        "+reward.shapes_strct.weight=1",
        "reward.shapes_strct has no _target_, so it is nothing that can be built; did you mean shapes_strict?",
    ),
    (
        "train",
        "+callbacks.best.monitr=val/reward",
        "callbacks.best.monitr: there is no such setting (egrpo.training.callbacks.Kept); did you mean monitor?",
    ),
    (
        "train",
        "+logger.wandb.entitty=me",
        "logger.wandb.entitty: there is no such setting (egrpo.base.trackers.WandbRun); did you mean entity?",
    ),
    ("generate", "+num_image=2", "num_image: there is no such setting; did you mean num_images?"),
    ("evaluate", "+rollout.cfg_wieght=2", "rollout.cfg_wieght: there is no such setting; did you mean cfg_weight?"),
    ("analyze", "+report.titel=x", "report.titel: there is no such setting; did you mean title?"),
    ("plan", "+objective.bta=0.5", "objective.bta: there is no such setting; did you mean beta?"),
    (
        "plan",
        "+assumptions.plan_token=3",
        "assumptions.plan_token: there is no such setting (egrpo.planning.Assumptions); did you mean plan_tokens?",
    ),
    ("search", "+trails=3", "trails: there is no such setting; did you mean trials?"),
    ("export", "+chekpoint=best", "chekpoint: there is no such setting; did you mean checkpoint?"),
    ("convert", "+traget=x", "traget: there is no such setting; did you mean target?"),
    ("download", "+dryrun=true", "dryrun: there is no such setting; did you mean dry_run?"),
    ("dashboard", "+entitiy=x", "entitiy: there is no such setting; did you mean entity?"),
    ("pretrain", "+codec.step=3", "codec.step: there is no such setting; did you mean steps?"),
    (
        "pretrain_rewards",
        "+networks.hps.prompt=3",
        "networks.hps.prompt: there is no such setting (egrpo.shapes.pretrain_rewards.clip.train); "
        "did you mean prompts?",
    ),
]


@pytest.mark.parametrize("root, override, sentence", UNKNOWN)
def test_an_unknown_key_is_refused_with_the_nearest(root, override, sentence):
    assert refusal(root, override) == sentence


def test_the_command_with_a_root_in_a_folder_is_checked_too():
    with initialize_config_dir(str(CONF / "collect"), version_base="1.3"):
        cfg = compose("collect", ["sweep=a_folder", "+basline=mine"])
    with pytest.raises(UserError, match=r"^basline: there is no such setting; did you mean baseline\?$"):
        check_settings(cfg, "collect/collect")


@pytest.mark.parametrize(
    "root, overrides",
    [
        ("train", ["+trainer.enable_progress_bar=false"]),
        ("train", ["+trainer.fast_dev_run=2"]),
        ("train", ["+optimizer.foreach=true"]),
        ("train", ["+model.gradient_checkpointing=true"]),
        ("train", ["+model.templates.system=mine"]),
        ("train", ["+logger.wandb.entity=team"]),
        ("train", ["+logger.wandb.mode=offline"]),
        ("train", ["+callbacks.mine={_target_: lightning.pytorch.callbacks.LearningRateMonitor}"]),
        ("train", ["+callbacks.mine={_target_: tests.launching.pieces.Fault, seed: 0}"]),
        ("train", ["callbacks.best=null"]),
        ("train", ["reward.shapes_strict=null"]),
        ("train", ["+also_validate.no_plan.cot=false"]),
        ("train", ["also_validate={no_plan: {cot: false}}"]),
        ("train", ["+study.note=mine"]),
        ("train", ["+experiment=shapes_eg_grpo", "+sweep=rewards"]),
        ("train", ["+experiment=shapes_eg_grpo", "+sweep=thresholds", "+sweep/size=quick"]),
        ("train", ["+experiment=shapes_eg_grpo", "+debug=fast"]),
        ("train", ["+my_rate=0.001", "optimizer.lr=${my_rate}"]),
        ("train", ["trainer.devices=auto"]),
        ("train", ["trainer.devices=[0,1]"]),
        ("train", ["trainer.limit_val_batches=0.5"]),
        ("train", ["trainer.precision=16-mixed"]),
        ("train", ["objective.micro_batch_size=null"]),
        ("train", ["reward=[http]", "reward.http.reward.url=http://x"]),
        ("train", ["reward=[http]", "reward.http.reward.url=http://x", "+reward.http.reward.headers={A: b}"]),
        ("analyze", ["+settings.mine.ckpt_path=RUN", "+settings.mine.description=mine"]),
        ("analyze", ["splits=null"]),
        ("search", ["~space.high", "+space.beta={key: objective.beta, low: 1e-3, high: 0.1, log: true}"]),
        ("evaluate", ["label=mine", "checkpoints=all", "compare=[a,b]"]),
        ("evaluate", ["benchmark=wise", "benchmark.judge.max_tokens=10"]),
        ("generate", ['prompts=["a red circle"]']),
    ],
)
def test_what_documentation_shows_and_libraries_take_is_accepted(root, overrides):
    check_settings(changed(root, *overrides), root)


SEED = "give a whole number from 0 to 4294967295"
COUNT = "give a whole number from 1 on"
THREADS = "give a whole number from 1 to 4096"
VALUES = [
    ("train", "rollout.group_size=2.5", "give a whole number from 2 on"),
    ("train", "rollout.group_size=1", "give a whole number from 2 on"),
    ("train", "rollout.group_size=eight", "give a whole number from 2 on"),
    ("train", "rollout.group_size=true", "give a whole number from 2 on"),
    ("train", "rollout.cfg_weight=1e38", "give a number from 0 to 1000"),
    ("train", "rollout.cfg_weight=nan", "give a finite number"),
    ("train", "rollout.temperature=inf", "give a finite number"),
    ("train", "rollout.temperature=0", "give a number from 0.0001 to 10000"),
    ("train", "rollout.temperature=1e-30", "give a number from 0.0001 to 10000"),
    ("train", "rollout.top_k=0", "give a whole number from 1 on or null"),
    ("train", "rollout.top_p=1.5", "give a number above 0 and up to 1 or null"),
    ("train", "rollout.batch_size=-1", "give a whole number from 1 on or null"),
    ("train", "rollout.cot=maybe", "give true or false"),
    ("train", "seed=null", SEED),
    ("train", "seed=-1", SEED),
    ("train", "seed=1.5", SEED),
    ("train", "seed=4294967296", SEED),
    ("train", "threads=0", THREADS),
    ("train", "threads=null", THREADS),
    ("train", "threads=two", THREADS),
    ("train", "optimizer.lr=abc", "give a number from 0 on"),
    ("train", "optimizer.lr=-1", "give a number from 0 on"),
    ("train", "optimizer.lr=nan", "give a finite number"),
    ("train", "optimizer.lr=null", "give a number from 0 on"),
    ("train", "optimizer.betas=[0.9]", "give a list of 2: a number, a number"),
    ("train", "optimizer.betas=0.9", "give a list of 2: a number, a number"),
    ("train", "optimizer.weight_decay=-0.1", "give a number from 0 on"),
    ("train", "scheduler.num_warmup_steps=-5", "give a whole number from 0 on"),
    ("train", "scheduler.num_warmup_steps=1.5", "give a whole number from 0 on"),
    ("train", "objective.max_grad_norm=nan", "give a finite number"),
    ("train", "objective.max_grad_norm=inf", "give a finite number"),
    ("train", "objective.max_grad_norm=0", "give a number above 0"),
    ("train", "objective.beta=-1", "give a number from 0 on"),
    ("train", "objective.beta=null", "give a number from 0 on"),
    ("train", "objective.clip_high=-0.2", "give a number above 0 or null"),
    ("train", "objective.updates_per_rollout=0", COUNT),
    ("train", "objective.micro_batch_size=0", "give a whole number from 1 on or null"),
    ("train", "entropy_policy.high_fraction=1.5", "give a number from 0 to 1"),
    ("train", "entropy_policy.bonus_scale=nan", "give a finite number"),
    ("train", "entropy_policy.segments=text", "give a list, each text"),
    ("train", "data.prompts_per_step=0", COUNT),
    ("train", "data.prompts_per_step=2.5", COUNT),
    ("train", "data.val_batch_size=-3", COUNT),
    ("train", "trainer.max_steps=2.5", "give a whole number from -1 on"),
    ("train", "trainer.max_steps=-2", "give a whole number from -1 on"),
    ("train", "trainer.num_nodes=0", COUNT),
    ("train", "trainer.devices=1.5", "give a list, each a whole number, text or a whole number"),
    ("train", "callbacks.checkpoint.every_n_train_steps=-1", "give a whole number from 0 on"),
    ("train", "callbacks.best.save_top_k=-2", "give a whole number from -1 on"),
    ("train", "reward.shapes_strict.weight=inf", "give a finite number"),
    ("train", "reward.shapes_strict.weight=much", "give a number"),
    ("train", "baseline_temperatures=[nan]", "give a finite number"),
    ("train", "baseline_temperatures=0.7", "give a list, each a number from 0.0001 to 10000"),
    ("train", "baseline_temperatures=[0]", "give a list, each a number from 0.0001 to 10000"),
    ("train", "go_on=perhaps", "give true or false"),
    ("generate", "num_images=0", COUNT),
    ("generate", "num_images=1.5", COUNT),
    ("generate", "batch_size=0", COUNT),
    ("generate", "rollout.cfg_weight=1e38", "give a number from 0 to 1000 or null"),
    ("generate", "sheets=2", "give true or false"),
    ("evaluate", "seed=null", SEED),
    ("evaluate", "export=maybe", "give true or false"),
    ("analyze", "num_prompts=0", COUNT),
    ("analyze", "plans_per_prompt=-1", COUNT),
    ("analyze", "processes=0", "give a whole number from 1 on or null"),
    ("analyze", "report.stratum_quantile=2", "give a number from 0 to 1"),
    ("analyze", "report.resamples=0", COUNT),
    ("plan", "assumptions.plan_tokens=nan", "give a finite number"),
    ("plan", "assumptions.compute_efficiency=0", "give a number above 0"),
    ("search", "trials=0", COUNT),
    ("search", "jobs=1.5", COUNT),
    ("search", "seeds=[a]", f"give a list that is not empty, each {SEED[5:]}"),
    ("search", "seeds=[]", f"give a list that is not empty, each {SEED[5:]}"),
    ("search", "sampler.n_startup_trials=-1", "give a whole number from 0 on"),
    ("download", "dry_run=1", "give true or false"),
    ("pretrain", "codec.steps=1.5", "give a whole number"),
    ("pretrain", "codec.lr=nan", "give a finite number"),
]


@pytest.mark.parametrize("root, override, allowed", VALUES, ids=[f"{root} {override}" for root, override, _ in VALUES])
def test_a_value_is_refused_with_its_key_and_what_is_allowed(root, override, allowed):
    shown = override.replace("[a]", "['a']")
    if "finite" in allowed:
        shown = shown.replace("[", "").replace("]", "")
    assert refusal(root, override) == f"{shown}: {allowed}"


@pytest.mark.parametrize(
    "root, override",
    [
        ("train", "run_dir="),
        ("train", "ckpt_path="),
        ("train", "data.train="),
        ("train", "model.path="),
        ("train", "reward_models="),
        ("generate", "prompts="),
        ("generate", "ckpt_path=' '"),
        ("export", "target="),
        ("export", "run="),
        ("convert", "source="),
        ("convert", "target="),
        ("download", "target="),
        ("search", "folder="),
        ("dashboard", "target="),
        ("pretrain", "target="),
    ],
)
def test_an_empty_path_is_refused(root, override):
    key = override.partition("=")[0]
    assert f"{key}= is empty (a variable that is not set?): name the file or folder" in refusal(root, override)


def test_all_faults_are_named_at_once_and_each_once():
    said = refusal("train", "seed=-1", "rollout.group_size=1", "+objective.bta=1")
    assert sorted(line.partition(":")[0] for line in said.splitlines()) == [
        "objective.bta",
        "rollout.group_size=1",
        "seed=-1",
    ]
