"""Made-up runs: the files that a collector reads, with numbers that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

STEPS = (0, 5, 10)  # at which a made-up run is validated


def make_run(folder: Path, strict: float, seed: int, *words: str, setting: str | None = None, **more: Any) -> Path:
    """A finished run that rose from .4 to `strict`, half of it in the first half."""
    config = begin_run(folder, seed, *words, setting=setting, **more)
    scores = {"strict": strict, "oracle": 0.5 + strict / 2, "reward": 2 * strict}
    before = {"strict": 0.4, "oracle": 0.7, "reward": 0.8}
    part = {"prompts": 4, "by_split": {"seen": {**scores, "prompts": 1}}, "by_task_type": {}, "interval_95": {}}
    validation = {
        "before": {**before, **part},
        "after": {**scores, **part},
        "with_plan": {**scores, **part, "strict": strict + 0.1},
        "temperature_0.7": {**before, **part},
        "gain": {name: {"mean": scores[name] - before[name], "interval_95": []} for name in scores},
    }
    rows = ["step,val/strict,val/reward,train/kl,train/reward"]
    rows += [f"{s},{0.4 + (strict - 0.4) * s / 10},{0.8 + (2 * strict - 0.8) * s / 10},," for s in STEPS]
    rows += [f"{s},,,{s / 100},{s / 10}" for s in range(1, 11)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    summary = {
        "validation": validation,
        "seconds": {"total": 60.0 + seed},
        "steps": 10,
        "seed": seed,
        "git_commit": "abc",
        "config": config,
        "overrides": overrides(seed, *words),
        "choices": {},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def begin_run(folder: Path, seed: int, *words: str, setting: str | None = None, **more: Any) -> dict[str, Any]:
    """A run that has begun; returns its configuration."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides(seed, *words)), folder / ".hydra" / "overrides.yaml")
    config: dict[str, Any] = {
        "seed": seed,
        "run_dir": str(folder),
        "study": {"name": "made_up", "setting": setting, "baseline": more.pop("baseline", None)},
        "objective": {"updates_per_rollout": 1},
        "data": {"prompts_per_step": 8},
        "rollout": {"group_size": 4},
        "varied": {key: value for key, _, value in (word.partition("=") for word in words)},
        "ensemble": {"failures": f"{folder}/failures"},
        **more,
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return config


def overrides(seed: int, *words: str) -> list[str]:
    return [f"seed={seed}", *words, "+experiment=shapes_eg_grpo"]
