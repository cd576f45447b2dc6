"""What the neural rewards share: where a model lives, how exactly it multiplies, and scoring in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from egrpo.base.errors import MissingFileError, UserError
from egrpo.paths import resolve
from egrpo.precision import keep_buffer_types
from egrpo.rewards.preparation import Preparation
from egrpo.types import PromptRecord


def model_folder(path: str | Path, reward: str) -> Path:
    """The directory of a reward model, `package:` paths followed.

    Raises:
        FileNotFoundError: there is none; the message says how to get one.
    """
    folder = resolve(path)
    if not (folder / "config.json").is_file():
        raise MissingFileError(
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
        UserError: torch knows no such device, or it is a GPU that is not there.
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
        raise UserError(f"device={device}: torch knows no such device; give auto, cpu or cuda:0") from error
    if found.type == "cuda" and (count := torch.cuda.device_count()) <= (found.index or 0):
        raise UserError(f"device={device}: there is no such GPU (there: {count}); give auto or cpu")
    return found


EXACT, TF32 = "float32", "tf32"
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = (EXACT, TF32, *AUTOCAST)


class Placement:
    """A frozen model in evaluation mode, moved where it is used.

    Args:
        model: Is frozen and converted to `dtype` in place.
        device: `auto`, or a device as torch names it.
        dtype: Of the weights, as torch names it: "float32", "bfloat16", "float16".
        offload: Between uses the model waits on the CPU, and its device's memory is free for others. Each use copies it
            to the device, and nothing is copied back.
        precision: Of products and convolutions of float32 weights. "float32": as torch is set. "tf32": factors are
            rounded to 10 bits of mantissa on GPUs that can (elsewhere nothing changes). "bfloat16", "float16": torch's
            autocast.

    Raises:
        UserError: torch knows no such dtype, `precision` is unknown, or is set for weights that are not float32.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "cpu",
        dtype: str = "float32",
        offload: bool = False,
        precision: str = EXACT,
    ):
        self.dtype, self.precision = dtype_named(dtype), checked_precision(precision, dtype)
        self.device, self.offload = pick_device(device), offload
        keep_buffer_types(model)
        self.model = model.eval().requires_grad_(False).to(home_of(self.device, offload), self.dtype)

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """The model on its device, in inference mode, for the length of a `with` block."""
        away = copied_to(self.model, self.device) if self.offload else nullcontext()
        with away, torch.inference_mode(), products(self.precision, self.device):
            yield self.model

    @property
    def process_wide(self) -> bool:
        """Whether its use changes how all threads of the process multiply meanwhile."""
        return self.precision == TF32 and self.device.type == "cuda"


def home_of(device: torch.device, offload: bool) -> torch.device:
    """Where a model waits that computes on `device`."""
    return torch.device("cpu") if offload else device


def dtype_named(dtype: str) -> torch.dtype:
    """Raises a UserError unless it is a floating-point type as torch names it."""
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype={dtype!r} is no floating-point type: use float32, bfloat16 or float16")
    return found


def checked_precision(precision: str, dtype: str) -> str:
    """Raises a UserError unless weights of `dtype` can be multiplied like that."""
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} of a reward is unknown: use {', '.join(PRECISIONS)}")
    if precision != EXACT and dtype != "float32":
        raise UserError(
            f"precision={precision} of a reward is a choice for float32 weights, and its dtype is {dtype}: leave "
            f"precision={EXACT}, or set dtype=float32"
        )
    return precision


def products(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within, float32 products on `device` are computed as `Placement` describes; after it, as torch is set."""
    if precision in AUTOCAST:
        return torch.autocast(device.type, AUTOCAST[precision])
    return tf32() if precision == TF32 else nullcontext()


@contextmanager
def tf32() -> Iterator[None]:
    """Within, all threads of the process multiply and convolve float32 in TF32 on GPUs that can."""
    settings: list[Any] = [torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def copied_to(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, parameters and buffers are copies on `device`; after it the old ones are back, untouched.

    So weights that are memory-mapped from a file stay so, and all processes share its pages.
    """
    copies: dict[int, Any] = {}  # what is shared stays shared
    places = []
    try:
        for module in model.modules():
            groups: list[dict[str, Any]] = [module._parameters, module._buffers]
            for group in groups:
                for name, tensor in group.items():
                    if tensor is not None:
                        if id(tensor) not in copies:
                            copy = tensor.detach().to(device)
                            weight = isinstance(tensor, nn.Parameter)
                            copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if weight else copy
                        places.append((group, name, tensor))
                        group[name] = copies[id(tensor)]
        yield
    finally:
        for group, name, tensor in places:
            group[name] = tensor


def check_batch_size(batch_size: int) -> None:
    """Raises a UserError where it is below 1."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} of a reward: give at least 1")


def check_pairs(images: Sequence[Any], records: Sequence[Any]) -> None:
    """Raises a UserError where there are not as many records as images."""
    if len(images) != len(records):
        raise UserError(f"a reward got {len(images)} images and {len(records)} records: give one record an image")


def in_batches(
    score: Callable[[list[Image.Image], list[PromptRecord]], Tensor],
    images: list[Image.Image],
    records: list[PromptRecord],
    batch_size: int,
    preparation: Preparation | None = None,
    batches: Sequence[list[int]] | None = None,
) -> Tensor:
    """`score` on at most `batch_size` images at a time; [N] float32 on the CPU.

    Args:
        score: Returns one number an image, on any device; they are fetched once, after the last batch.
        preparation: Prepares the next batches' images meanwhile; None = `score` gets them as they are.
        batches: Rows of each batch; None = in the order of the images.

    Raises:
        UserError: `batch_size` is below 1, or there are not as many records as images.
    """
    check_batch_size(batch_size)
    check_pairs(images, records)
    rows = list(range(len(images)))
    if batches is None:
        batches = [rows[first : first + batch_size] for first in rows[::batch_size]]
    shown = [[images[row] for row in batch] for batch in batches]
    scores = torch.zeros(len(images), dtype=torch.float32)
    with preparation.ahead(shown) if preparation else nullcontext(shown) as prepared:
        parts = [
            score(pictures, [records[row] for row in batch]).float()
            for pictures, batch in zip(prepared, batches, strict=True)
        ]
    for batch, part in zip(batches, parts, strict=True):
        scores[batch] = part.cpu()
    return scores
