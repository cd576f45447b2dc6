"""Five steps of the shapes world under every strategy, compared with one device.

    python -m experiments.scale.equality                              # on the GPUs that there are
    python -m experiments.scale.equality accelerator=cpu devices=2    # the same on a CPU, over gloo

Prints a row a run: greatest relative difference of loss, KL and gradient norm over the steps, greatest difference of a
weight, seconds of the last steps, and whether sampling kept its fast way (`perf/decoding`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from experiments.scale.runs import Run

DEFAULTS = {
    "accelerator": "gpu",
    "devices": None,  # None = all GPUs
    "folder": "outputs/scale/equality",
    "precision": "32-true",
    "at_once": 4,  # runs side by side
    "only": None,  # names of rows below, None = all
    "timeout": 300,  # seconds, of one run
    "overrides": [],  # of every run
}
METRICS = ("train/loss", "train/kl", "train/grad_norm", "train/reward")
SHAPES = [
    "+experiment=shapes_eg_grpo",
    "trainer.max_steps=5",
    "trainer.limit_val_batches=1",  # a validation before training and after it, as real runs have
    "trainer.val_check_interval=5",
    "baseline_temperatures=[]",
    *(f"callbacks.{name}=null" for name in ("best", "checkpoint", "samples", "entropy")),
    "model.max_plan_tokens=24",
    "model.chunk_size=64",
    "rollout.group_size=8",
    "data.prompts_per_step=4",
    "optimizer.lr=1e-4",
    "scheduler.num_warmup_steps=0",
    "objective.beta=0.05",
    # Most image tokens of the shapes world have one entropy: rounding would decide which of them are in which band.
    "entropy_policy.segments=[text]",
]
# What is compared with which run of one device.
BASES: dict[str, list[str]] = {
    "alone": [],
    "alone, LoRA": ["model/adapter=lora"],
    "alone, no CoT": ["cot=off"],
    "alone, masters": ["optimizer=adamw_master"],
}
ROWS: dict[str, tuple[str, list[str]]] = {
    "ddp": ("alone", ["strategy=ddp"]),
    "fsdp2": ("alone", ["strategy=fsdp2"]),
    "fsdp2, shard": ("alone", ["strategy=fsdp2", "rollout.gather=shard"]),
    "fsdp2, micro-batches of 3": ("alone", ["strategy=fsdp2", "objective.micro_batch_size=3"]),
    "fsdp2, masters": ("alone, masters", ["strategy=fsdp2", "optimizer=adamw_master"]),
    "fsdp2, LoRA": ("alone, LoRA", ["strategy=fsdp2", "model/adapter=lora"]),
    "fsdp2, no CoT": ("alone, no CoT", ["strategy=fsdp2", "cot=off"]),
    "ZeRO-2": ("alone", ["strategy=deepspeed_stage_2"]),
    "ZeRO-3": ("alone", ["strategy=deepspeed_stage_3"]),
    "ZeRO-3, shard": ("alone", ["strategy=deepspeed_stage_3", "rollout.gather=shard"]),
    "ZeRO-3, micro-batches of 3": ("alone", ["strategy=deepspeed_stage_3", "objective.micro_batch_size=3"]),
    "ZeRO-3, LoRA": ("alone, LoRA", ["strategy=deepspeed_stage_3", "model/adapter=lora"]),
    "ZeRO-3, no CoT": ("alone, no CoT", ["strategy=deepspeed_stage_3", "cot=off"]),
    "ZeRO-3 offload": ("alone", ["strategy=deepspeed_stage_3_offload"]),
}


def main(words: list[str]) -> int:
    """Runs all rows, prints the table; 1 where a run failed."""
    settings: Any = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(words))
    devices = settings.devices or torch.cuda.device_count()
    chosen = [name for name in ROWS if settings.only is None or name in settings.only]
    bases = [name for name in BASES if any(ROWS[row][0] == name for row in chosen)]
    common = [*SHAPES, f"trainer.accelerator={settings.accelerator}", *settings.overrides]
    runs = {name: [*common, "trainer.devices=1", *BASES[name]] for name in bases}
    runs |= {name: [*common, f"trainer.devices={devices}", *ROWS[name][1]] for name in chosen}
    ready = {
        name: Run(Path(settings.folder) / name.replace(", ", "_").replace(" ", "_"), words, weights=True)
        for name, words in ((n, [*w, f"trainer.precision={settings.precision}"]) for n, w in runs.items())
    }
    failed = run_all(ready, int(settings.at_once), float(settings.timeout))
    heading = ("loss", "KL", "grad norm", "reward", "weights", "s a step", "decoding")
    print(f"{settings.precision}, {devices} devices against 1\n{'':28}" + "".join(f"{name:>11}" for name in heading))
    for name, run in ready.items():
        if name in failed:
            print(f"{name:28} FAILED {failed[name]}\n{run.last_words()}")
        elif name in bases:
            row = run.rows()[-1]
            print(f"{name:28}" + f"{row['perf/seconds_step']:66.3f}{row.get('perf/decoding', float('nan')):11.0f}")
        elif ROWS[name][0] not in failed:
            apart, row = difference(ready[ROWS[name][0]], run), run.rows()[-1]
            print(
                f"{name:28}"
                + "".join(f"{value:11.1e}" for value in apart)
                + f"{row['perf/seconds_step']:11.3f}{row.get('perf/decoding', float('nan')):11.0f}"
            )
    return int(bool(failed))


def run_all(runs: dict[str, Run], at_once: int, timeout: float) -> dict[str, str]:
    """Runs `at_once` side by side; returns those that failed, with their exit status."""
    waiting, going, failed = list(runs), {}, {}
    while waiting or going:
        while waiting and len(going) < at_once:
            name = waiting.pop(0)
            going[name] = (runs[name].start(), time.monotonic())
        for name, (process, start) in list(going.items()):
            if process.poll() is None and time.monotonic() - start > timeout:
                process.terminate()
                process.wait()
                failed[name] = f"not done after {timeout:.0f} s"
            if process.poll() is not None:
                del going[name]
                if process.returncode and name not in failed:
                    failed[name] = f"with status {process.returncode}"
        time.sleep(0.2)
    return failed


def difference(one: Run, other: Run) -> list[float]:
    """Greatest relative difference of each metric over steps, and absolute of the trained weights."""
    pairs = list(zip(one.rows(), other.rows(), strict=True))
    apart = [max(abs(a[m] - b[m]) / max(abs(a[m]), 1e-3) for a, b in pairs) for m in METRICS]
    ours, theirs = (load_file(run.folder / "recorded" / "weights.safetensors") for run in (one, other))
    if ours.keys() != theirs.keys() or not ours:
        raise ValueError(f"{one.folder} and {other.folder} trained other weights")
    return [*apart, max(float((ours[name] - theirs[name]).abs().max()) for name in ours)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
