"""Images become a model's pixels while its device computes the batch before.

PIL's resizing, which must be done as the published code does it, runs on the CPU and leaves 8-bit pixels; arithmetic on
them (normalisation) runs where the model is. For an accelerator a few threads work ahead; on a CPU, where they would
take the model's cores, each batch is prepared when it is due.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

AHEAD = 2  # batches that are prepared, or being prepared, while the model computes one
MOST_WORKERS = 8


class PreparedImages(list[Image.Image]):
    """The images of one batch, with their 8-bit pixels [N, 3, H, W] where the model is."""

    def __init__(self, images: Iterable[Image.Image], pixels: Tensor):
        super().__init__(images)
        self.pixels = pixels


class Preparation:
    """How images become pixels for one model.

    Args:
        cut: An image of any mode -> uint8 [3, H, W] on the CPU, of one size for all images of a batch.
        finish: uint8 [N, 3, H, W] on the model's device -> float32 [N, 3, H', W'] there.
        device: Where the model computes.
        workers: Threads that work ahead; None = `preparation_workers(device)`; 0 = none.
    """

    def __init__(
        self,
        cut: Callable[[Image.Image], Tensor],
        finish: Callable[[Tensor], Tensor],
        device: torch.device,
        workers: int | None = None,
    ):
        self.cut, self.finish, self.device = cut, finish, device
        self.workers = preparation_workers(device) if workers is None else workers

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, 3, H', W'] float32 on the device; what `ahead` has prepared is not prepared again."""
        if not isinstance(images, PreparedImages):
            images = self._together(images, map(self.cut, images))
        return self.finish(images.pixels)

    @contextmanager
    def ahead(self, batches: Sequence[Sequence[Image.Image]]) -> Iterator[Iterator[PreparedImages]]:
        """The batches in their order, each prepared by the time it is due. On leaving, all threads have ended.

        What `cut` raises is raised in the caller, when it asks for the batch.
        """
        if not self.workers:
            yield (self._together(batch, map(self.cut, batch)) for batch in batches)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="egrpo-images")
        try:
            yield self._from(pool, iter(batches))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _from(self, pool: ThreadPoolExecutor, batches: Iterator[Sequence[Image.Image]]) -> Iterator[PreparedImages]:
        def submit(count: int) -> None:
            for batch in islice(batches, count):
                begun.append((batch, [pool.submit(self.cut, image) for image in batch]))

        begun: deque[tuple[Sequence[Image.Image], list[Future[Tensor]]]] = deque()
        submit(AHEAD)
        while begun:
            batch, parts = begun.popleft()
            submit(1)
            yield self._together(batch, (part.result() for part in parts))

    def _together(self, images: Sequence[Image.Image], parts: Iterable[Tensor]) -> PreparedImages:
        return PreparedImages(images, to_device(torch.stack(list(parts)), self.device))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy to a GPU waits for nothing that was started there before."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def preparation_workers(device: torch.device) -> int:
    """Threads that prepare images for a model on `device`: none on a CPU; elsewhere this process's share of the cores,
    less one for the thread that feeds the device."""
    if device.type != "cuda":
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // ranks - 1))


def rows_by_size(images: Sequence[Image.Image], rows: Iterable[int], batch_size: int) -> list[list[int]]:
    """`rows` in batches of at most `batch_size` images of equal size; sizes in the order of their first image."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows:
        by_size[images[row].size].append(row)
    return [found[at : at + batch_size] for found in by_size.values() for at in range(0, len(found), batch_size)]


def cut_as(processor: Any) -> Callable[[Image.Image], Tensor]:
    """The part of a transformers image processor (PIL's kind) that is about places: resizing and cropping."""

    def cut(image: Image.Image) -> Tensor:
        settings: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        pixels = processor([image.convert("RGB")], **settings)["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8))

    return cut


def levels_of(processor: Any) -> Tensor:
    """[3, 256] float32: what a transformers image processor makes of each 8-bit level in each channel."""
    levels = np.arange(256, dtype=np.uint8)
    picture = Image.fromarray(np.repeat(levels[None, :, None], 3, axis=2))
    geometry = {name: False for name in ("do_resize", "do_center_crop", "do_pad") if hasattr(processor, name)}
    return processor([picture], return_tensors="pt", **geometry)["pixel_values"][0, :, 0].float()


def by_level(pixels: Tensor, levels: Tensor) -> Tensor:
    """Each 8-bit value of [N, 3, H, W] exchanged for its entry in `levels` [3, 256]: normalisation, to the last bit as
    the processor computes it, on any device."""
    table = levels.to(pixels.device)
    if pixels.device.type == "cpu":  # numpy reads 8-bit indices, torch would widen them first
        source, entries = pixels.numpy(), table.numpy()
        return torch.from_numpy(np.stack([entries[c].take(source[:, c]) for c in range(len(entries))], axis=1))
    offsets = 256 * torch.arange(len(levels), device=pixels.device).view(-1, 1, 1)
    return table.flatten()[pixels.long() + offsets]
