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
from egrpo.launch import last_of_restart, launch
from egrpo.provenance import provenance
from egrpo.training import GRPOModule, MetricsFile
from egrpo.training.checks import check_entropy_policy, check_optimizer, check_run, check_share, rollouts_under
from egrpo.training.outcome import measure_trained, measure_under, measure_untouched, report_run
from egrpo.training.resume import changed_settings, is_finished, last_state, told_settings

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """One run: read prompts, build, validate, fit, validate again, report."""
    start, origin = time.monotonic(), provenance()
    check_run(cfg)
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
    module = build_module(cfg)
    also = rollouts_under(module.rollout_settings, cfg.also_validate)
    check_share(data, module.rollout_settings, distributed.world_size())
    loggers: list[Logger] = [MetricsFile(str(folder), resume=resumed), *instantiate(cfg.logger).values()]
    callbacks = [callback for callback in instantiate(cfg.callbacks).values() if callback is not None]
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
    module: GRPOModule = instantiate(cfg.module, _convert_="object")
    check_entropy_policy(module.entropy_policy)
    check_optimizer(module.make_optimizer, module.make_scheduler)
    return module


def close_wandb() -> None:
    """Ends W&B's run, if one is open, so that its files are whole and the next job of a sweep gets its own."""
    wandb = sys.modules.get("wandb")  # imported by its logger alone
    if wandb is not None and wandb.run is not None:
        wandb.finish()


if __name__ == "__main__":
    run(train, "train")
