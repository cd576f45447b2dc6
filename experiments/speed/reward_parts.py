"""Where a reward's seconds go: preparing images, the model's passes, both overlapped; and all rewards in an ensemble.

What `python -m experiments.speed.rewards parts=true` prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

from egrpo.rewards import RewardEnsemble, WeightedReward
from egrpo.rewards.deformable import DeformableSampling
from egrpo.rewards.preparation import Preparation, PreparedImages
from egrpo.types import PromptRecord

LEVELS = [(100, 100), (50, 50), (25, 25), (13, 13)]  # of a detector's 800 x 800 pixels


class Replayed(Preparation):
    """Gives the batches that were prepared at its first use again, so that what follows them is measured alone."""

    def __init__(self, plain: Preparation):
        super().__init__(plain.cut, plain.finish, plain.device, plain.workers)
        self.kept: list[PreparedImages] | None = None

    @contextmanager
    def ahead(self, batches: Sequence[Sequence[Image.Image]]) -> Iterator[Iterator[PreparedImages]]:
        if self.kept is None:
            with super().ahead(batches) as prepared:
                self.kept = list(prepared)
        yield iter(self.kept)


class Drained(Preparation):
    """Prepares all batches, and then ends the call."""

    @contextmanager
    def ahead(self, batches: Sequence[Sequence[Image.Image]]) -> Iterator[Iterator[PreparedImages]]:
        with super().ahead(batches) as prepared:
            for batch in prepared:
                self.finish(batch.pixels)
        raise Prepared


class Prepared(Exception):
    """All images are prepared."""


def seconds_of(task: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after one to warm up, the device's work included."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        task()
        wait(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parts_of(reward: Any, images: list[Image.Image], records: list[PromptRecord], repeats: int) -> dict[str, float]:
    """Seconds of one neural reward on all images: `prepare` and `forward` alone, and `together`."""
    plain, device = reward.preparation, reward.placement.device

    def with_preparation(preparation: Preparation) -> float:
        reward.preparation = preparation
        try:
            return seconds_of(call, device, repeats)
        finally:
            reward.preparation = plain

    def call() -> None:
        with suppress(Prepared):
            reward(images, records)

    return {
        "prepare": with_preparation(Drained(plain.cut, plain.finish, plain.device, plain.workers)),
        "forward": with_preparation(Replayed(plain)),
        "together": with_preparation(plain),
    }


def print_parts(
    rewards: dict[str, Any], images: list[Image.Image], records: list[PromptRecord], repeats: int
) -> dict[str, dict[str, float]]:
    """One line a reward, as soon as it is measured, and one for all of them in an ensemble."""
    print(f"seconds for {len(images)} images of {images[0].width} x {images[0].height}, median of {repeats}")
    print(f"{'reward':14}{'batch':>6}{'prepare':>9}{'forward':>9}{'together':>9}{'GB':>7}  threads, dtype, precision")
    found: dict[str, dict[str, float]] = {}
    for name, reward in rewards.items():
        place = reward.placement
        if place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place.device)
        found[name] = parts_of(reward, images, records, repeats)
        peak = torch.cuda.max_memory_allocated(place.device) / 1e9 if place.device.type == "cuda" else float("nan")
        times = "".join(f"{seconds:9.3f}" for seconds in found[name].values())
        how = f"{reward.preparation.workers}, {str(place.dtype).removeprefix('torch.')}, {place.precision}"
        print(f"{name:14}{reward.batch_size:6}{times}{peak:7.1f}  {how}", flush=True)
    ensemble = RewardEnsemble({name: WeightedReward(reward) for name, reward in rewards.items()})
    device = next(iter(rewards.values())).placement.device
    found["all"] = {"together": seconds_of(lambda: ensemble(images, records), device, repeats)}
    print(f"{'all':14}{'':24}{found['all']['together']:9.3f}", flush=True)
    return found


def sampling_seconds(
    device: torch.device, batch: int, repeats: int, levels: Sequence[tuple[int, int]] = LEVELS
) -> dict[str, float]:
    """Seconds of one deformable attention of the detector's encoder: transformers' sampling, and ours."""
    positions, heads, width, points = sum(high * wide for high, wide in levels), 8, 32, 4
    value = torch.randn(batch, positions, heads, width, device=device)
    own = torch.cat([torch.cartesian_prod(*(torch.arange(n) / n for n in level)) for level in levels]).flip(-1)
    spread = 0.02 * torch.randn(batch, positions, heads, len(levels), points, 2)  # each looks around its own place
    locations = (own.view(1, positions, 1, 1, 1, 2) + spread).to(device)
    weights = torch.rand(locations.shape[:-1], device=device)
    with torch.inference_mode():
        return {
            name: seconds_of(lambda m=module: m(value, None, levels, None, locations, weights, 64), device, repeats)
            for name, module in (("transformers", MultiScaleDeformableAttention()), ("ours", DeformableSampling()))
        }
