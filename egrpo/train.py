"""`python -m egrpo.train +experiment=NAME`: trains a policy and reports what it learned.

Leaves in its folder: config.yaml, metrics.csv, checkpoints/, samples/, curves.png, summary.json, and the tracker's run.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from egrpo import distributed
from egrpo.checkpoints import check_checkpoint
from egrpo.entry import composition, run, save_config
from egrpo.launch import last_of_restart, launch, resume_training
from egrpo.provenance import provenance
from egrpo.training import GRPOModule, MetricsFile
from egrpo.training.callbacks import StopSignals
from egrpo.training.checks import (
    check_devices,
    check_entropy_policy,
    check_optimizer,
    check_records,
    check_run,
    check_share,
    rollouts_under,
)
from egrpo.training.monitors import FirstMetrics, check_monitors, validated_names
from egrpo.training.outcome import measure_trained, measure_under, measure_untouched, report_run
from egrpo.training.resume import changed_settings, is_finished, keep_inputs, last_state, told_settings, training_in

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """One run: read prompts, build, validate, fit, validate again, report."""
    start, origin = time.monotonic(), provenance()
    check_run(cfg)
    check_devices(cfg.trainer)
    if launch(cfg):
        return
    distributed.connect()
    cfg.run_dir = distributed.from_first(cfg.run_dir)
    cfg.ckpt_path = distributed.from_first(last_of_restart(Path(cfg.run_dir))) or cfg.ckpt_path
    folder = Path(cfg.run_dir)
    if cfg.go_on and is_finished(cfg, folder):
        if distributed.rank() == 0:
            print(f"already finished: {folder}", flush=True)
        return
    if cfg.go_on:
        cfg.ckpt_path = distributed.from_first(last_state(folder)) or cfg.ckpt_path
    with training_in(cfg, folder):
        train_in(cfg, folder, start, origin)


def train_in(cfg: DictConfig, folder: Path, start: float, origin: dict[str, Any]) -> None:
    """The run in its folder, which is held for it.

    Args:
        cfg: Its settings; `ckpt_path` is what it resumes from.
        folder: The same on all ranks.
        start: When the command began, by the monotonic clock.
        origin: Entries of the summary that say what ran.
    """
    resumed = cfg.ckpt_path is not None
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    check_checkpoint(cfg.ckpt_path)
    changed = distributed.from_first(changed_settings(cfg, folder))
    if changed and distributed.rank() == 0:
        log.warning("this run goes on with other settings than it began with: %s", ", ".join(changed))
    if distributed.rank() == 0:
        save_config(cfg, folder)
    torch.set_num_threads(cfg.threads)
    seed_everything(cfg.seed, verbose=False)
    data: LightningDataModule = instantiate(cfg.data)  # first: bad prompts are told before any model is loaded
    if distributed.rank() == 0:
        keep_inputs(cfg, folder)
    module = build_module(cfg)
    also = rollouts_under(module.rollout_settings, cfg.also_validate or {})
    check_records(data, module.rewards, module.validation.judges, validates=cfg.trainer.get("limit_val_batches") != 0)
    check_share(data, module.rollout_settings, distributed.world_size())
    loggers: list[Logger] = [MetricsFile(str(folder), resume=resumed), *instantiate(cfg.logger).values()]
    callbacks = [callback for callback in instantiate(cfg.callbacks).values() if callback is not None]
    check_monitors(callbacks, validated_names(module, data))
    callbacks += [FirstMetrics(), StopSignals()]
    trainer: Trainer = instantiate(cfg.trainer, logger=loggers, callbacks=callbacks)
    for logger in loggers:
        logger.log_hyperparams(told_settings(settings))
    try:
        kept = resumed and not changed  # what the first part of the run measured still holds
        untouched = measure_untouched(trainer, module, data, folder, list(cfg.baseline_temperatures), kept)
        module.resume_from = cfg.ckpt_path
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path)
        trained = measure_trained(trainer, module, data)
        further = measure_under(trainer, module, data, also)
    finally:
        close_wandb()
    if trainer.is_global_zero:
        origin |= composition() | {"config": settings}
        report_run(folder, trainer, module, untouched, trained, further, time.monotonic() - start, origin)


def build_module(cfg: DictConfig) -> GRPOModule:
    """The LightningModule, rewards loaded, settings checked; the policy is built when the trainer is ready."""
    module: GRPOModule = instantiate(without_idle_rewards(cfg).module, _convert_="object")
    check_entropy_policy(module.entropy_policy)
    check_optimizer(module.make_optimizer, module.make_scheduler)
    return module


def without_idle_rewards(cfg: DictConfig) -> DictConfig:
    """The configuration with rewards of weight 0 left out, whose models would be loaded and run for nothing.

    Where no other is left, all stay, for the ensemble to refuse.
    """
    weights = {name: node.get("weight") for name, node in cfg.reward.items() if node is not None}
    idle = [name for name, weight in weights.items() if weight == 0]
    if not idle or len(idle) == len(weights):
        return cfg
    cfg = cfg.copy()
    for name in idle:
        cfg.reward[name] = None
    return cfg


def close_wandb() -> None:
    """Ends W&B's run, if one is open, so that its files are whole and the next job of a sweep gets its own."""
    wandb = sys.modules.get("wandb")  # imported by its logger alone
    if wandb is not None and wandb.run is not None:
        wandb.finish()


if __name__ == "__main__":
    run(train, "train", resume=resume_training)
