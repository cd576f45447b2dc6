"""Tiny runs of the shipped model: a handful of prompts, plans of six tokens, groups of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from egrpo.paths import config_dir, resolve
from egrpo.train import build_module, train
from egrpo.training import GRPOModule
from tests.training.pieces import metrics

PROMPTS = "package:egrpo/shapes/assets/prompts"


class Runs:
    """Composes, builds and runs tiny trainings on the same few prompts."""

    def __init__(self, prompts: Path) -> None:
        self.tiny = [
            f"data.train={prompts / 'train.jsonl'}",
            f"data.val={prompts / 'validation.jsonl'}",
            "data.prompts_per_step=2",
            "data.val_batch_size=4",
            "rollout.group_size=2",
            "model.max_plan_tokens=6",
            "optimizer.lr=1e-3",
            "trainer.max_steps=2",
            "trainer.accelerator=cpu",
            "+trainer.enable_progress_bar=false",
            "callbacks.samples.every_n_train_steps=1000",
            "logger=none",
            "baseline_temperatures=[]",
            "threads=1",
            "~callbacks.progress",
            "reward=[]",
            "+reward.brightness={_target_: egrpo.rewards.WeightedReward, weight: 1.0, "
            "reward: {_target_: tests.training.pieces.Brightness}}",
        ]

    def overrides(self, folder: Path, *more: str) -> list[str]:
        """What makes `python -m egrpo.train` the same run."""
        return [*self.tiny, f"run_dir={folder}", *more]

    def config(self, folder: Path, *more: str) -> DictConfig:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose("train", self.overrides(folder, *more))

    def run(self, folder: Path, *more: str) -> list[dict[str, str]]:
        """A whole run; returns its metrics without those of speed."""
        train(self.config(folder, *more))
        return metrics(folder)

    def module(self, folder: Path, *more: str) -> GRPOModule:
        """A module with its policy, without a trainer."""
        module = build_module(self.config(folder, *more))
        module.configure_model()
        return module

    def published(self, folder: Path, *overrides: str) -> GRPOModule:
        """A module with its policy as an experiment on Janus-Pro composes it, without a trainer."""
        with initialize_config_dir(config_dir(), version_base="1.3"):
            module = build_module(compose("train", ["logger=none", f"run_dir={folder}", *overrides]))
        module.configure_model()
        return module

    def fit(self, folder: Path, *more: str, module: GRPOModule | None = None, callbacks: Any = ()) -> GRPOModule:
        """Training alone: neither validation nor files."""
        cfg = self.config(folder, "trainer.limit_val_batches=0", *more)
        module = module or build_module(cfg)
        trainer: Trainer = instantiate(
            cfg.trainer, logger=False, callbacks=list(callbacks), enable_checkpointing=False, _convert_="object"
        )
        trainer.fit(module, datamodule=instantiate(cfg.data))
        return module


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.jsonl (6 prompts of different types) and validation.jsonl (4, one of them seen)."""
    folder = tmp_path_factory.mktemp("prompts")
    chosen = {"train": {"train": 6}, "validation": {"unseen_prompt": 2, "unseen_composition": 1, "seen": 1}}
    for name, splits in chosen.items():
        lines = resolve(f"{PROMPTS}/{name}.jsonl").read_text().splitlines()
        few = [line for split, n in splits.items() for line in [x for x in lines if f'"split": "{split}"' in x][:n]]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in few))
    return folder


@pytest.fixture(scope="session")
def runs(prompts: Path) -> Runs:
    return Runs(prompts)
