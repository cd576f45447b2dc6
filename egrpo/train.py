"""`python -m egrpo.train +experiment=NAME`: trains a policy and reports what it learned.

Leaves in its folder: config.yaml, metrics.csv, checkpoints/, samples/, curves.png, summary.json, and the tracker's run.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from egrpo.entry import run, save_config
from egrpo.rewards import RewardEnsemble
from egrpo.training import GRPOModule, MetricsFile
from egrpo.training.metrics import peak_memory_gb
from egrpo.training.report import gains, git_commit, save_curves, save_samples, summarise, table, versions, write_json
from egrpo.training.validation import Row

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """One run: read prompts, build, validate, fit, validate again, report."""
    start = time.monotonic()
    folder = Path(cfg.run_dir)
    save_config(cfg, folder)
    torch.set_num_threads(cfg.threads)
    seed_everything(cfg.seed, verbose=False)
    check_checkpoint(cfg.ckpt_path)
    data: LightningDataModule = instantiate(cfg.data)  # first: bad prompts are told before any model is loaded
    module = build_module(cfg)
    loggers = [MetricsFile(str(folder)), *instantiate(cfg.logger).values()]
    trainer: Trainer = instantiate(cfg.trainer, logger=loggers, callbacks=list(instantiate(cfg.callbacks).values()))
    try:
        before, baselines = measure_untouched(trainer, module, data, cfg)
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path)
        after = validate(trainer, module, data)
    finally:
        for logger in loggers:
            logger.finalize("done")
        close_wandb()
    if trainer.is_global_zero:
        finish(cfg, folder, trainer, module, before, baselines, after, time.monotonic() - start)


def build_module(cfg: DictConfig) -> GRPOModule:
    """The LightningModule with its rewards; the policy itself is built when the trainer is ready."""
    rewards = RewardEnsemble(instantiate(cfg.reward, _convert_="object"))
    return instantiate(cfg.module, rewards=rewards, _convert_="object")


def check_checkpoint(path: str | None) -> None:
    """Raises FileNotFoundError where a checkpoint to resume from is not there."""
    if path is not None and not Path(path).exists():
        raise ValueError(f"ckpt_path={path}: there is no such checkpoint; runs keep theirs in FOLDER/checkpoints/")


def measure_untouched(
    trainer: Trainer, module: GRPOModule, data: LightningDataModule, cfg: DictConfig
) -> tuple[list[Row], dict[float, list[Row]]]:
    """Validation of the model before training, at the run's temperature and at the baselines'."""
    baselines = {}
    usual = module.validation.rollout.temperature
    for temperature in cfg.baseline_temperatures:
        module.validation.with_temperature(temperature, f"temperature_{temperature}/")
        baselines[temperature] = validate(trainer, module, data)
    module.validation.with_temperature(usual)
    return validate(trainer, module, data), baselines


def validate(trainer: Trainer, module: GRPOModule, data: LightningDataModule) -> list[Row]:
    """Rows of one validation, one a prompt."""
    trainer.validate(module, datamodule=data, verbose=False)
    return module.validation.rows


def close_wandb() -> None:
    """Ends W&B's run, if one is open, so that its files are whole and the next job of a sweep gets its own."""
    import wandb

    if wandb.run is not None:
        wandb.finish(quiet=True)


def finish(
    cfg: DictConfig,
    folder: Path,
    trainer: Trainer,
    module: GRPOModule,
    before: list[Row],
    baselines: dict[float, list[Row]],
    after: list[Row],
    seconds: float,
) -> None:
    """Writes samples, curves and summary, and prints the result."""
    names = [name for name in before[0].scores if name != "reward"] or ["reward"]
    save_samples(folder / "samples", before, after, names[0])
    save_curves(folder / "metrics.csv", folder / "curves.png")
    colder: dict[str, Any] = {f"temperature_{t}": summarise(rows) for t, rows in baselines.items()}
    summary = {
        "validation": {"before": summarise(before), "after": summarise(after), **colder, "gain": gains(before, after)},
        "seconds": {"total": seconds, **module.clock.total},
        "steps": trainer.global_step,
        "peak_memory_gb": peak_memory_gb(),
        "seed": cfg.seed,
        "versions": versions(),
        "git_commit": git_commit(),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    write_json(folder / "summary.json", summary)
    validation = summary["validation"]
    rows = [("untouched", validation["before"])]
    rows += [(f"untouched at {name.replace('_', ' ')}", value) for name, value in colder.items()]
    print(table([*rows, ("trained", validation["after"])], names))
    print(f"{trainer.global_step} steps in {seconds:.0f} s. Look at samples/before_after.png and curves.png.")
    print(folder)


if __name__ == "__main__":
    run(train, "train")
