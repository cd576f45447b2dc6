"""What the neural rewards share: where a model lives, and scoring in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from egrpo.paths import resolve
from egrpo.precision import keep_buffer_types
from egrpo.types import PromptRecord


def model_folder(path: str | Path, reward: str) -> Path:
    """The directory of a reward model, `package:` paths followed.

    Raises:
        FileNotFoundError: there is none; the message says how to get one.
    """
    folder = resolve(path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the {reward} reward finds no model in {folder} (no config.json): fetch the published checkpoints with "
            "python -m egrpo.download what=rewards, convert your own with python -m egrpo.convert, or name another "
            f"folder with reward.{reward}.reward.path=... (all at once: reward_models=...)"
        )
    return folder


def pick_device(device: str) -> torch.device:
    """`auto` = this process's accelerator where there is one, else the CPU; anything else as torch names it.

    The process's accelerator is that of its local rank, as torchrun, Lightning's launchers (LOCAL_RANK) or SLURM
    (SLURM_LOCALID) number it; a process alone takes torch's current one.

    Raises:
        ValueError: torch knows no such device, or it is a GPU that is not there.
    """
    if device != "auto":
        return _named_device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    return torch.device("cuda", torch.cuda.current_device() if local is None else int(local))


def _named_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device}: torch knows no such device; give auto, cpu or cuda:0") from error
    if found.type == "cuda" and (count := torch.cuda.device_count()) <= (found.index or 0):
        raise ValueError(f"device={device}: there is no such GPU (there: {count}); give auto or cpu")
    return found


class Placement:
    """A frozen model in evaluation mode, moved where it is used.

    Args:
        model: Is frozen and converted to `dtype` in place.
        device: `auto`, or a device as torch names it.
        dtype: Of the weights, as torch names it: "float32", "bfloat16", "float16".
        offload: Between uses the model waits on the CPU, and its device's memory is free for others.

    Raises:
        ValueError: torch knows no such dtype.
    """

    def __init__(self, model: nn.Module, device: str = "cpu", dtype: str = "float32", offload: bool = False):
        self.dtype = getattr(torch, dtype, None)
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise ValueError(f"dtype={dtype!r} is no floating-point type: use float32, bfloat16 or float16")
        self.device, self.offload = pick_device(device), offload
        home = torch.device("cpu") if offload else self.device
        keep_buffer_types(model)
        self.model = model.eval().requires_grad_(False).to(home, self.dtype)

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """The model on its device, in inference mode, for the length of a `with` block."""
        if self.offload:
            self.model.to(self.device)
        try:
            with torch.inference_mode():
                yield self.model
        finally:
            if self.offload:
                self.model.to("cpu")


def check_batch_size(batch_size: int) -> None:
    """Raises a ValueError where it is below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} of a reward: give at least 1")


def check_pairs(images: Sequence[Any], records: Sequence[Any]) -> None:
    """Raises a ValueError where there are not as many records as images."""
    if len(images) != len(records):
        raise ValueError(f"a reward got {len(images)} images and {len(records)} records: give one record an image")


def in_batches(
    score: Callable[[list[Image.Image], list[PromptRecord]], Tensor],
    images: list[Image.Image],
    records: list[PromptRecord],
    batch_size: int,
) -> Tensor:
    """`score` on at most `batch_size` images at a time; [N] float32 on the CPU.

    Raises:
        ValueError: `batch_size` is below 1, or there are not as many records as images.
    """
    check_batch_size(batch_size)
    check_pairs(images, records)
    parts = [
        score(images[first : first + batch_size], records[first : first + batch_size]).float().cpu()
        for first in range(0, len(images), batch_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0)
