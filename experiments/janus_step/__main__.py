"""Makes the checkpoint where it is missing, takes training steps, and prints seconds by phase and peak memory.

    python -m experiments.janus_step size=1b folder=outputs/janus_1b                                # CPU, few tokens
    python -m experiments.janus_step size=1b folder=... device=cuda image_tokens=576 group_size=8   # the real length

Rewards are a brightness function: the reward models' weights are not to be had by everyone, and their cost is measured
by experiments.speed.rewards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf

from egrpo.paths import config_dir
from egrpo.train import build_module
from egrpo.training.metrics import peak_memory_gb
from experiments.janus_step.make import make

DEFAULTS = {
    "size": "1b",
    "folder": "???",
    "through_original": True,  # write the original format and convert it, rather than the native one at once
    "device": "cpu",
    "image_tokens": 16,  # a square number; 576 in the real model
    "plan_tokens": 8,  # random weights write plans of full length
    "group_size": 2,
    "prompts": 1,
    "micro_batch_size": 2,
    "steps": 2,  # the first pays for warming up
    "threads": 2,
    "overrides": [],  # more of python -m egrpo.train
}


def main() -> None:
    """One table, and one JSON line last."""
    settings: Any = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    torch.set_num_threads(settings.threads)
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = make(settings.size, folder, settings.through_original)
    (folder / "prompts.txt").write_text("a red cup on a blue table\ntwo dogs and a cat\n")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides(settings, folder))
    seed_everything(0, verbose=False)
    module = build_module(cfg)
    phases: list[dict[str, float]] = []
    module.report = lambda metrics: phases.append({k: float(v) for k, v in metrics.items()})  # type: ignore[method-assign]
    trainer: Trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=instantiate(cfg.data))
    last = phases[-1]
    seconds = {name.removeprefix("perf/seconds_"): value for name, value in last.items() if "seconds" in name}
    report |= {"seconds": seconds, "peak_memory_gb": peak_memory_gb(), "grad_norm": last["grad_norm"]}
    report |= {"tokens_per_second": last["perf/tokens_per_second"], "kl": last["kl"], "device": device_name(settings)}
    for name, value in seconds.items():
        print(f"{name:12}{value:10.2f} s")
    print(json.dumps(report))


def overrides(settings: Any, folder: Path) -> list[str]:
    """Of `python -m egrpo.train`: the experiment on Janus-Pro-1B with this checkpoint and these sizes."""
    return [
        "+experiment=eg_grpo_janus_pro_1b",
        f"model.path={folder / 'native'}",
        f"model.num_image_tokens={settings.image_tokens}",
        f"model.max_plan_tokens={settings.plan_tokens}",
        "data=file",
        f"data.train={folder / 'prompts.txt'}",
        f"data.prompts_per_step={settings.prompts}",
        f"rollout.group_size={settings.group_size}",
        f"objective.micro_batch_size={settings.micro_batch_size}",
        "reward=[python]",
        "reward.python.reward.function=experiments.janus_step.brightness.brightness",
        f"trainer.max_steps={settings.steps}",
        f"trainer.accelerator={'gpu' if settings.device == 'cuda' else settings.device}",
        "+trainer.enable_progress_bar=false",
        f"run_dir={folder / 'run'}",
        *settings.overrides,
    ]


def device_name(settings: Any) -> str:
    """What the numbers belong to."""
    return torch.cuda.get_device_name() if settings.device == "cuda" else f"CPU, {settings.threads} threads"


if __name__ == "__main__":
    main()
