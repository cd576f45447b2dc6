"""`python -m egrpo.train +experiment=NAME`: trains a policy and reports what it learned.

Leaves in its folder: config.yaml, metrics.csv, checkpoints/, samples/, curves.png, summary.json, and the tracker's run.
"""

from __future__ import annotations

import logging
import time
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from egrpo.entry import run, save_config
from egrpo.rewards import RewardEnsemble
from egrpo.training import GRPOModule, MetricsFile
from egrpo.training.checks import check_entropy_policy, check_optimizer
from egrpo.training.metrics import peak_memory_gb
from egrpo.training.report import gains, git_commit, save_curves, save_samples, summarise, table, versions, write_json
from egrpo.training.validation import Row, load_rows, save_rows

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
    loggers: list[Logger] = [MetricsFile(str(folder), resume=cfg.ckpt_path is not None)]
    loggers += instantiate(cfg.logger).values()
    trainer: Trainer = instantiate(cfg.trainer, logger=loggers, callbacks=list(instantiate(cfg.callbacks).values()))
    for logger in loggers:
        logger.log_hyperparams(cast(Any, OmegaConf.to_container(cfg, resolve=True)))
    try:
        untouched = measure_untouched(trainer, module, data, cfg, folder)
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path)
        fresh = module.validation.finished_at == trainer.global_step
        trained = module.validation.rows if fresh else validate(trainer, module, data)
    finally:
        close_wandb()
    if trainer.is_global_zero:
        finish(cfg, folder, trainer, module, untouched, trained, time.monotonic() - start)


def build_module(cfg: DictConfig) -> GRPOModule:
    """The LightningModule with its rewards, its settings checked; the policy is built when the trainer is ready."""
    rewards = RewardEnsemble(instantiate(cfg.reward, _convert_="object"))
    module: GRPOModule = instantiate(cfg.module, rewards=rewards, _convert_="object")
    check_entropy_policy(module.entropy_policy)
    check_optimizer(module.make_optimizer, module.make_scheduler)
    return module


def check_checkpoint(path: str | None) -> None:
    """Raises ValueError where a checkpoint to resume from is not there, or is not whole."""
    if path is None:
        return
    if not Path(path).exists():
        raise ValueError(f"ckpt_path={path}: there is no such checkpoint; runs keep theirs in FOLDER/checkpoints/")
    if Path(path).is_file() and not zipfile.is_zipfile(path):  # strategies that share weights write folders
        raise ValueError(f"ckpt_path={path}: this file is not a checkpoint, or was cut short; give an earlier one")


def measure_untouched(
    trainer: Trainer, module: GRPOModule, data: LightningDataModule, cfg: DictConfig, folder: Path
) -> dict[str, list[Row]]:
    """Validation of the model before training: "before" at the run's temperature, and colder ones for comparison.

    A resumed run finds what its first part measured.
    """
    usual = module.validation.rollout.temperature
    wanted = {f"temperature_{t}": t for t in cfg.baseline_temperatures} | {"before": usual}
    out = {}
    for name, temperature in wanted.items():
        path = folder / "validation" / f"{name}.npz"
        if cfg.ckpt_path is not None and path.exists():
            out[name] = load_rows(path)
            continue
        module.validation.with_temperature(temperature, "" if name == "before" else f"{name}/")
        out[name] = validate(trainer, module, data)
        save_rows(path, out[name])
    module.validation.with_temperature(usual)
    return out


def validate(trainer: Trainer, module: GRPOModule, data: LightningDataModule) -> list[Row]:
    """Rows of one validation, one a prompt."""
    trainer.validate(module, datamodule=data, verbose=False)
    return module.validation.rows


def close_wandb() -> None:
    """Ends W&B's run, if one is open, so that its files are whole and the next job of a sweep gets its own."""
    import wandb

    if wandb.run is not None:
        wandb.finish()


def finish(
    cfg: DictConfig,
    folder: Path,
    trainer: Trainer,
    module: GRPOModule,
    untouched: dict[str, list[Row]],
    trained: list[Row],
    seconds: float,
) -> None:
    """Writes samples, curves and summary, and prints the result."""
    before = untouched["before"]
    names = [name for name in trained[0].scores if name != "reward"] or ["reward"]
    save_rows(folder / "validation" / "after.npz", trained)
    save_samples(folder / "samples", before, trained, names[0])
    save_curves(folder / "metrics.csv", folder / "curves.png")
    validation = {name: summarise(rows) for name, rows in {**untouched, "after": trained}.items()}
    summary = {
        "validation": {**validation, "gain": gains(before, trained)},
        "seconds": {"total": seconds, **module.clock.total},
        "steps": trainer.global_step,
        "peak_memory_gb": peak_memory_gb(),
        "seed": cfg.seed,
        "versions": versions(),
        "git_commit": git_commit(),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    write_json(folder / "summary.json", summary)
    print(table(validation, names))
    print(f"{trainer.global_step} steps in {seconds:.0f} s. Look at samples/before_after.png and curves.png.")
    print(folder)


if __name__ == "__main__":
    run(train, "train")
