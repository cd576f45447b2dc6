"""The published run at its exact shapes on the GPUs that there are: random weights, real-size rewards, any strategy.

    python -m experiments.scale                                           # Janus-Pro-7B, ZeRO-3 and FSDP2, all GPUs
    python -m experiments.scale size=1b devices=1 strategies=[auto]
    python -m experiments.scale strategies=[fsdp2] overrides=[model/adapter=lora,optimizer.lr=1e-5]
    python -m experiments.scale size=tiny accelerator=cpu devices=2       # the same code on a CPU, in minutes

Makes what is missing of the checkpoints (in `folder`, used again by the next call), starts `python -m egrpo.train` for
each strategy, and prints one table: seconds by phase, peak memory by rank next to what `python -m egrpo.plan` predicts,
tokens a second, the share of the memory bandwidth that sampling reaches, seconds and bytes of a checkpoint. Everything
that was measured is left in `results.json`, and each run's log in its folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf

from experiments.janus_step.make import random_native
from experiments.scale.planned import planned
from experiments.scale.prompts import write_prompts
from experiments.scale.rewards import make_rewards
from experiments.scale.runs import Run

DEFAULTS = {
    "size": "7b",  # 7b, 1b, or tiny: the shipped shapes model and rewards
    "experiment": "eg_grpo_janus_pro_7b",
    "strategies": ["deepspeed_stage_3", "fsdp2"],
    "accelerator": "gpu",
    "devices": None,  # None = all GPUs
    "prompts_per_device": 2,
    "group_size": 8,
    "plan_tokens": 100,  # random weights write plans of full length
    "image_tokens": 576,
    "micro_batch_size": 8,
    "rollout_batch": 16,  # sequences sampled at once
    "rewards": True,  # False: a brightness function in place of the four models
    "steps": 3,  # the first pays for compiling and is reported apart
    "checkpoint": False,  # a checkpoint after the last step
    "memory_fraction": None,  # of each card's memory, to play a smaller one
    "device_spec": "h200",  # conf/device, for the plan; None = no plan
    "timeout": 500,  # seconds, of one run
    "folder": "outputs/scale",
    "overrides": [],
}
PHASES = ("rollout", "rewards", "reference", "padding", "scoring", "backward", "optimizer")


def main(words: list[str]) -> int:
    """Makes, runs, prints; 1 where a run failed."""
    settings: Any = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(words))
    settings.devices = settings.devices or torch.cuda.device_count()
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    prepare(settings, folder)
    results, failed = [], False
    for strategy in settings.strategies:
        words = overrides(settings, folder, strategy)
        run = Run(folder / f"{settings.size}_{strategy}", words)
        shutil.rmtree(run.folder, ignore_errors=True)
        status = wait(run, float(settings.timeout))
        if status:
            failed = True
            print(f"{strategy}: FAILED {status}\n{run.last_words()}", flush=True)
        found = measured(run, settings, strategy) if run.rows() else None
        if found is not None:
            results.append(found)
            print("\n".join(lines(found)), flush=True)
            (folder / "results.json").write_text(json.dumps(results, indent=1))
        if not settings.checkpoint:
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return int(failed)


def prepare(settings: Any, folder: Path) -> None:
    """Random checkpoints of policy and rewards, and prompts, where they are not there yet."""
    write_prompts(folder / "prompts.jsonl")
    if settings.size == "tiny":
        return
    start = time.perf_counter()
    native = folder / f"janus_{settings.size}"
    if not (native / "config.json").exists():
        random_native(settings.size, native, seed=0)
    if settings.rewards and not (folder / "rewards" / "orm" / "config.json").exists():
        make_rewards(folder / "rewards", "cuda" if settings.accelerator == "gpu" else "cpu", seed=0)
    torch.cuda.empty_cache()
    print(f"checkpoints: {time.perf_counter() - start:.0f} s", flush=True)


def overrides(settings: Any, folder: Path, strategy: str) -> list[str]:
    """Of `python -m egrpo.train`: a published experiment with these sizes."""
    tiny = settings.size == "tiny"
    rewards = ["reward=[hps,git,gdino_strict,orm]", f"reward_models={folder / 'rewards'}"]
    if tiny:
        rewards = ["reward=[shapes_oracle]"]
    elif not settings.rewards:
        rewards = ["reward=[python]", "reward.python.reward.function=experiments.janus_step.brightness.brightness"]
    model = (
        ["model=shapes"]
        if tiny
        else [
            f"model={'janus_pro_1b' if settings.size == '1b' else 'janus_pro_7b'}",
            f"model.path={folder / f'janus_{settings.size}'}",
            f"model.num_image_tokens={settings.image_tokens}",
        ]
    )
    return [
        f"+experiment={settings.experiment}",
        *model,
        f"model.max_plan_tokens={settings.plan_tokens}",
        *(["data=shapes"] if tiny else ["data=file", f"data.train={folder / 'prompts.jsonl'}"]),
        f"data.prompts_per_step={settings.prompts_per_device * settings.devices}",
        f"rollout.group_size={settings.group_size}",
        f"rollout.batch_size={settings.rollout_batch}",
        f"objective.micro_batch_size={settings.micro_batch_size}",
        *rewards,
        f"strategy={strategy}",
        f"trainer.accelerator={settings.accelerator}",
        f"trainer.devices={settings.devices}",
        f"trainer.max_steps={settings.steps}",
        *(["trainer.precision=32-true"] if tiny else []),
        *([] if settings.checkpoint else ["callbacks.checkpoint=null"]),
        *("callbacks.samples=null", "callbacks.entropy=null"),
        *([] if settings.memory_fraction is None else [f"+callbacks.recorder.fraction={settings.memory_fraction}"]),
        *settings.overrides,
    ]


def wait(run: Run, timeout: float) -> str:
    """Runs it to its end; returns what went wrong, "" if nothing."""
    process = run.start()
    try:
        status = process.wait(timeout)
    except Exception:
        run.kill(process)
        return f"not done after {timeout:.0f} s"
    return f"with status {status}" if status else ""


def measured(run: Run, settings: Any, strategy: str) -> dict[str, Any]:
    """The numbers of a run: medians over its steps but the first."""
    rows, ranks = run.rows(), run.recorded()
    steady = rows[1:] or rows
    seconds = {p: median(r.get(f"perf/seconds_{p}", 0.0) for r in steady) for p in PHASES}
    saved = run.folder / "checkpoints"
    return {
        "size": settings.size,
        "strategy": strategy,
        "devices": int(settings.devices),
        "card": ranks[0]["device"],
        "images_a_device": int(settings.prompts_per_device) * int(settings.group_size),
        "overrides": run.overrides,
        "first_step": rows[0]["perf/seconds_step"],
        "step": median(r["perf/seconds_step"] for r in steady),
        "steps": [r["perf/seconds_step"] for r in rows],
        "seconds": seconds,
        "tokens_a_second": median(r["perf/tokens_per_second"] for r in steady) * int(settings.devices),
        "decoding": rows[-1].get("perf/decoding"),
        "ranks": ranks,
        "peak": [max([r["before"], *r["phases"].values()]) for r in ranks],
        "saves": [s for r in ranks for s in r["saves"]],
        "checkpoint_gb": sum(f.stat().st_size for f in saved.rglob("*") if f.is_file() and not f.is_symlink()) / 1e9,
        "plan": None if settings.device_spec is None else planned(run.overrides, settings.device_spec),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A run, as rows of text."""
    plan = found["plan"] or {"step": float("nan"), "peak": float("nan"), "phases": {}}
    first = found["ranks"][0]
    by_phase = " ".join(f"{name} {value:.2f}" for name, value in found["seconds"].items() if value)
    peaks = " ".join(f"{peak:.1f}" for peak in found["peak"])
    memory = {"before": round(first["before"], 1)} | {name: round(value, 1) for name, value in first["phases"].items()}
    saves = ", ".join(f"{seconds:.1f}" for seconds in found["saves"]) or "none"
    return [
        f"{found['size']} {found['strategy']}, {found['devices']} x {found['card']}, "
        f"{found['images_a_device']} images a device",
        f"  step {found['step']:.2f} s (first {found['first_step']:.1f}, planned {plan['step']:.2f}): {by_phase}",
        f"  {found['tokens_a_second']:.0f} tokens a second, decoding {found['decoding']}",
        f"  peak {peaks} GB (planned {plan['peak']:.1f}), reserved {first['reserved']:.1f}; rank 0: {memory}",
        f"  planned: {plan['phases']}",
        f"  checkpoint: {saves} s, {found['checkpoint_gb']:.1f} GB",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
