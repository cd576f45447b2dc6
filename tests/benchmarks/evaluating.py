"""The command `egrpo.evaluate` as Python calls it, on few prompts and the shipped model with short plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from egrpo.evaluate import evaluate
from egrpo.paths import config_dir
from tests.benchmarks.pieces import contents, geneval_prompts, t2i_prompts, wise_prompts

SMALL = ("model.max_plan_tokens=6", "logger=none", "model_name=shapes", "batch_size=4", "reward_models=nowhere")


def run(folder: Path, *overrides: str) -> Path:
    """A whole call; gives the folder."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("evaluate", [f"run_dir={folder}", *SMALL, *overrides])
    evaluate(cfg)
    return folder


def overrides_for(name: str, folder: Path) -> list[str]:
    """What names a benchmark and few prompts for it, in its own format."""
    prompts: dict[str, Any] = {
        "t2i_compbench": lambda: t2i_prompts(folder / "prompts"),
        "geneval": lambda: geneval_prompts(folder / "metadata.jsonl"),
        "wise": lambda: wise_prompts(folder / "prompts", 3, 1, 450, 801),
    }
    few = {"t2i_compbench": ["benchmark.images_per_prompt=3"], "shapes": ["benchmark.limit=6"]}
    path = [f"benchmark.prompts={prompts[name]()}"] if name in prompts else []
    return [f"benchmark={name}", *path, *few.get(name, [])]


def exported(folder: Path, leave_out: Sequence[str] = ("config", "table", "scores.json")) -> dict[str, bytes]:
    """Name -> content of all files of an export, without those that name the folder or tell scores."""
    return {name: data for name, data in contents(folder).items() if not name.startswith(tuple(leave_out))}
