"""Every sweep composes, and so does each of its jobs; each job has a folder of its own."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tests.conf.helpers import CONF, check_target, key_paths, targets
from tests.conf.test_compose import OPEN_MAPPINGS, TRAIN_KEYS

SWEEPS = sorted(p.stem for p in CONF.glob("sweep/*.yaml") if not p.stem.startswith("_"))
COMMAND = re.compile(r"^# command:  python -m egrpo\.train -m (\+experiment=\w+) (\+sweep=(\w+))$", re.MULTILINE)
RUNS = re.compile(r"^# Cost: (\d+) runs \((\d+) [\w ]+ x (\d+) seeds\)", re.MULTILINE)


def header(sweep: str) -> str:
    return (CONF / "sweep" / f"{sweep}.yaml").read_text()


def words(sweep: str) -> list[str]:
    """Overrides of the sweep's command."""
    found = COMMAND.search(header(sweep))
    assert found and found[3] == sweep, f"conf/sweep/{sweep}.yaml must name its command"
    return [found[1], found[2]]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, "run_dir=a_folder"], return_hydra_config=True)
    return cfg


@cache
def jobs(sweep: str, *more: str) -> list[list[str]]:
    """Overrides of every job, as Hydra's sweeper makes them."""
    own = [*words(sweep), *more]
    params = composed(*own).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *own])
    return BasicSweeper.split_arguments(parsed, None)[0]


def plain(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """The job's folder within the sweep's, and its settings."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    settings = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True)
    assert isinstance(settings, dict)
    return str(cfg.hydra.sweep.subdir), {str(k): v for k, v in settings.items()}


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("which", ["ends", pytest.param("all", marks=pytest.mark.slow)])
def test_every_job_composes_into_a_folder_of_its_own(sweep, which, monkeypatch):
    all_jobs = jobs(sweep)
    one_seed = [job for job in all_jobs if "seed=0" in job]
    first = one_seed if which == "all" else [one_seed[0], one_seed[-1]]
    folders, settings, baseline = set(), set(), None
    for job in first:
        folder, cfg = plain(composed(*job), monkeypatch)
        assert set(cfg) == TRAIN_KEYS
        assert cfg["go_on"] and cfg["threads"] == 1
        assert folder == f"{cfg['study']['setting']}/seed_0" and not re.search(r"[=\s\[\],]", folder)
        folders.add(folder)
        settings.add(cfg["study"]["setting"])
        baseline = cfg["study"]["baseline"]
        images = cfg["data"]["prompts_per_step"] * cfg["rollout"]["group_size"] * cfg["trainer"]["max_steps"]
        assert images == 64 * 140, "all runs of all studies have the same budget of images"
    for path, node in targets(cfg):
        check_target(path, node)
    assert len(folders) == len(first)
    told = RUNS.search(header(sweep))
    seeds = len(all_jobs) // len(one_seed)
    assert told and [int(n) for n in told.groups()] == [len(all_jobs), len(one_seed), seeds]
    if which == "ends":
        return
    shared = settings if sweep != "rewards_normalized" else settings | {"all_none"}  # of the study it goes on with
    assert baseline in shared


@pytest.mark.parametrize("path", sorted(CONF.glob("sweep/**/*.yaml")), ids=lambda p: p.stem)
def test_sweeps_set_keys_that_training_reads(path):
    own = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(own, dict)
    set_here = key_paths({key: value for key, value in own.items() if key not in ("defaults", "hydra")})
    unknown = set_here - key_paths(OmegaConf.to_container(plain_training()))
    assert not [key for key in unknown if not key.startswith(OPEN_MAPPINGS)]


@cache
def plain_training() -> DictConfig:
    return composed("+experiment=shapes_eg_grpo")


def test_the_quick_size_leaves_alone_what_studies_vary():
    """Or settings would share a folder."""
    varied = {str(key) for sweep in SWEEPS for key in composed(*words(sweep)).hydra.sweeper.params} - {"seed"}
    for path in [*CONF.glob("sweep/samples/*.yaml"), *CONF.glob("sweep/mixture/*.yaml")]:
        varied |= key_paths(OmegaConf.to_container(OmegaConf.load(path)))
    quick = key_paths(OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / "size" / "quick.yaml")))
    groups = {"data", "rollout"}  # mappings that hold both
    assert not {key for key in quick if key in varied} - groups


@pytest.mark.parametrize("sweep", ["method", "rewards"])
def test_the_quick_size_has_a_folder_of_its_own_and_two_seeds(sweep, monkeypatch):
    quick = jobs(sweep, "+sweep/size=quick")
    cfg = composed(*quick[0])
    assert {word for job in quick for word in job if word.startswith("seed=")} == {"seed=0", "seed=1"}
    assert cfg.trainer.max_steps == 1
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    assert Path(cfg.hydra.sweep.dir).parts[1] == "studies_quick"
    assert composed(*jobs(sweep)[0]).hydra.sweep.dir == f"outputs/studies/{sweep}"


def test_two_jobs_run_at_a_time_unless_another_launcher_is_chosen():
    assert composed(*words("method")).hydra.launcher.n_jobs == 2
    assert "n_jobs" not in composed(*words("method"), "hydra/launcher=basic").hydra.launcher
