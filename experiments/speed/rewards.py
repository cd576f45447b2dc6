"""Images per second of each reward: N images in one call beside N calls with one image, as the published code scores.

    python -m experiments.speed.rewards                                  # the shipped tiny models, CPU
    python -m experiments.speed.rewards reward_models=DIR device=auto    # real checkpoints

Runs alternate, so that a busy machine slows both alike; the median of `repeats` is shown, and the ratio with its range.

    python -m experiments.speed.rewards parts=true reward_models=DIR device=cuda dtype=bfloat16 side=384 group=8

instead shows where the seconds of `images` images go (preparation, forward passes, both together), with the batch sizes
and types of conf/reward; `dtype` is `reward_dtype` there, and `overrides=[detector_precision=tf32]` changes other keys.
`python -m experiments.scale.rewards target=DIR` makes models of the published sizes with random weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from egrpo.data import read_prompts
from egrpo.paths import config_dir, resolve
from egrpo.rewards import Reward
from egrpo.types import PromptRecord
from experiments.speed.reward_parts import print_parts, sampling_seconds

DEFAULTS = {
    "rewards": ["hps", "git", "gdino_strict", "orm"],
    "reward_models": "package:egrpo/shapes/assets/rewards",
    "prompts": "package:egrpo/shapes/assets/prompts/validation.jsonl",
    "side": 48,  # of the images, pixels
    "sizes": [1, 8, 32],
    "repeats": 5,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "parts": False,  # where the seconds go, instead of batches against single images
    "images": 64,  # of parts
    "group": 8,  # images of each prompt, of parts
    "overrides": [],  # of conf/train.yaml, of parts
}


def main() -> None:
    """Prints one table, a line a reward and batch size, or that of `show_parts`."""
    settings: Any = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    torch.set_num_threads(settings.threads)
    if settings.parts:
        return show_parts(settings)
    most = max(settings.sizes)
    records = read_prompts(resolve(settings.prompts))[:most]
    images = noise(most, settings.side)
    print(f"{settings.device}, {settings.dtype}, {settings.threads} threads, images per second")
    print(f"{'reward':14}{'images':>8}{'one by one':>12}{'batched':>12}{'ratio':>8}{'range':>16}")
    for name in settings.rewards:
        reward = build(name, settings)
        reward(images[:1], records[:1])  # the first call pays for what libraries set up
        for size in settings.sizes:
            single, batched = compare(reward, images[:size], records[:size], settings.repeats)
            ratios = [s / b for s, b in zip(single, batched, strict=True)]
            span = f"{min(ratios):.2f} to {max(ratios):.2f}"
            rates = f"{size / median(single):12.1f}{size / median(batched):12.1f}"
            print(f"{name:14}{size:8}{rates}{median(ratios):8.2f}{span:>16}", flush=True)


def noise(count: int, side: int) -> list[Image.Image]:
    """`count` images of side x side random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def show_parts(settings: Any) -> None:
    """Prints the table of `reward_parts`, and the detector's attention on its own."""
    prompts = read_prompts(resolve(settings.prompts))
    wanted = -(-settings.images // settings.group)
    step = max(1, len(prompts) // wanted)  # files are sorted by task type: take them from all over
    records = [record for record in prompts[::step][:wanted] for _ in range(settings.group)][: settings.images]
    overrides = [
        f"reward=[{','.join(settings.rewards)}]",
        f"reward_models={settings.reward_models}",
        f"reward_dtype={settings.dtype}",
        *(f"reward.{name}.reward.device={settings.device}" for name in settings.rewards),
        *settings.overrides,
    ]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        nodes = compose("train", overrides).reward
        rewards = {name: instantiate(nodes[name].reward, _convert_="object") for name in settings.rewards}
    device = next(iter(rewards.values())).placement.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}, {settings.threads} threads, overrides {list(settings.overrides)}")
    print_parts(rewards, noise(settings.images, settings.side), records, settings.repeats)
    if device.type == "cuda":
        times = sampling_seconds(device, 8, settings.repeats)
        print("one deformable attention of 8 images: " + ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in times.items()))


def build(name: str, settings: Any) -> Reward:
    """One reward as `python -m egrpo.train reward=[name]` would build it, for the largest batch."""
    overrides = [
        f"reward=[{name}]",
        f"reward_models={settings.reward_models}",
        f"reward.{name}.reward.device={settings.device}",
        f"reward.{name}.reward.dtype={settings.dtype}",
        f"reward.{name}.reward.batch_size={max(settings.sizes)}",
    ]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        node = compose("train", overrides).reward[name]
        return instantiate(node.reward, _convert_="object")


def compare(
    reward: Reward, images: list[Image.Image], records: list[PromptRecord], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each repeat, one image a call and all in one call, the two in turn."""
    single, batched = [], []
    for _ in range(repeats):
        single.append(seconds(lambda: [reward([i], [r]) for i, r in zip(images, records, strict=True)]))
        batched.append(seconds(lambda: reward(images, records)))
    return single, batched


def seconds(task: Callable[[], Any]) -> float:
    """Of one run; rewards return CPU tensors, so that no device work is left when they do."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
