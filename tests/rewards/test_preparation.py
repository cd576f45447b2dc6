"""Images that are prepared while the model computes: order, errors, threads, and pixels to the last bit."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GroundingDinoImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from egrpo.paths import resolve
from egrpo.rewards import GITReward, GroundingDinoReward, HPSReward, ORMReward
from egrpo.rewards.preparation import (
    AHEAD,
    Preparation,
    by_level,
    cut_as,
    levels_of,
    preparation_workers,
    rows_by_size,
)
from egrpo.types import PromptRecord

CPU = torch.device("cpu")
SHIPPED = resolve("package:egrpo/shapes/assets/rewards")
CLASSES = {"hps": HPSReward, "git": GITReward, "gdino": GroundingDinoReward, "orm": ORMReward}


def noise(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def numbered(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(count)]


def red(image: Image.Image) -> torch.Tensor:
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.uint8).view(3, 1, 1)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("egrpo-images")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order(workers):
    def slow_first(image: Image.Image) -> torch.Tensor:
        time.sleep(0.02 if image.getpixel((0, 0))[0] == 0 else 0)
        return red(image)

    images = numbered(7)
    preparation = Preparation(slow_first, lambda pixels: pixels.float(), CPU, workers)
    with preparation.ahead([images[:3], images[3:5], images[5:]]) as prepared:
        found = [preparation(batch)[:, 0, 0, 0].tolist() for batch in prepared]
    assert found == [[0, 1, 2], [3, 4], [5, 6]] and not threads()


def test_the_next_batches_are_prepared_while_one_is_used_and_no_more():
    begun: list[int] = []

    def watched(image: Image.Image) -> torch.Tensor:
        begun.append(image.getpixel((0, 0))[0])
        return red(image)

    preparation = Preparation(watched, lambda pixels: pixels, CPU, workers=2)
    with preparation.ahead([[image] for image in numbered(9)]) as prepared:
        next(prepared)
        until = time.monotonic() + 10
        while len(begun) < 1 + AHEAD and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.05)
        assert sorted(begun) == list(range(1 + AHEAD))
    assert not threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_the_callers_at_its_batch(workers):
    def breaking(image: Image.Image) -> torch.Tensor:
        if image.getpixel((0, 0))[0] == 2:
            raise OSError("image 2 is broken")
        return red(image)

    preparation = Preparation(breaking, lambda pixels: pixels, CPU, workers)
    seen = 0

    def consume() -> None:
        nonlocal seen
        with preparation.ahead([[image] for image in numbered(5)]) as prepared:
            for _ in prepared:
                seen += 1

    with pytest.raises(OSError, match="image 2 is broken"):
        consume()
    assert seen == 2 and not threads()


def test_a_caller_that_stops_early_leaves_no_thread():
    preparation = Preparation(red, lambda pixels: pixels, CPU, workers=2)

    def stop() -> None:
        with preparation.ahead([[image] for image in numbered(50)]) as prepared:
            next(prepared)
            raise KeyError("stops")

    with pytest.raises(KeyError):
        stop()
    assert not threads()


PROCESSORS = [
    CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}),
    CLIPImageProcessorPil(size={"shortest_edge": 20}, do_center_crop=False, image_std=[0.2, 0.3, 0.4]),
    GroundingDinoImageProcessorPil(size={"shortest_edge": 30, "longest_edge": 60}),
]


@pytest.mark.parametrize("number", range(len(PROCESSORS)))
@pytest.mark.parametrize("size", [(48, 48), (37, 80)])
def test_pixels_are_the_processors_to_the_last_bit(number, size):
    processor, images = PROCESSORS[number], [noise(seed, size) for seed in range(3)]
    wanted = processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    levels = levels_of(processor)
    found = Preparation(cut_as(processor), lambda pixels: by_level(pixels, levels), CPU)(images)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_levels_are_looked_up_alike_on_every_device():
    pixels, levels = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8), torch.randn(3, 256)
    offsets = 256 * torch.arange(3).view(-1, 1, 1)
    assert torch.equal(by_level(pixels, levels), levels.flatten()[pixels.long() + offsets])  # as on an accelerator
    assert by_level(pixels.to("meta"), levels).shape == pixels.shape


@pytest.mark.parametrize("name", CLASSES)
def test_scores_are_the_same_with_threads(name):
    reward = CLASSES[name](SHIPPED / name, batch_size=2)
    size = {"gdino": (24, 24)}.get(name, (48, 48))
    images = [noise(seed, size) for seed in range(4)] + [noise(4, (40, 48))]
    records = [
        PromptRecord(f"a {noun}", task_type="color", nouns=[noun]) for noun in ("circle", "red square", "a", "b", "c")
    ]
    if name == "gdino":
        reward.processor.size = {"shortest_edge": 160, "longest_edge": 200}
    assert reward.preparation.workers == 0
    wanted = reward(images, records)
    reward.preparation.workers = 2
    assert torch.equal(reward(images, records), wanted) and not threads()


def test_rows_of_one_size_go_together():
    images = [Image.new("RGB", (size, 2)) for size in (5, 6, 5, 5, 6, 5)]
    assert rows_by_size(images, range(6), 3) == [[0, 2, 3], [5], [1, 4]]
    assert rows_by_size(images, [5, 1], 3) == [[5], [1]] and rows_by_size([], [], 3) == []


@pytest.mark.parametrize("cores, ranks, workers", [(16, 1, 8), (16, 4, 3), (2, 2, 1), (1, 1, 1)])
def test_threads_are_a_ranks_share_of_the_cores(monkeypatch, cores, ranks, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert preparation_workers(torch.device("cuda", 0)) == workers and preparation_workers(CPU) == 0
