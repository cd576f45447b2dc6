"""One reward on N images, checked: what a failure does, and what it leaves behind. Nothing becomes 0 silently."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from egrpo import distributed
from egrpo.base.errors import UserError
from egrpo.base.files import writing
from egrpo.precision import float32_default
from egrpo.rewards.base import PartialRewardError, Reward, RewardError
from egrpo.types import PromptRecord

log = logging.getLogger(__name__)

STOP, DROP, DROP_GROUP = "stop", "drop", "drop_group"
WATCH = 60.0  # seconds
SAVED = 8  # failed images kept of one failure


@dataclass(frozen=True)
class Column:
    """One reward's values [N] float32 and `mask` [N] bool: False where it was dropped, and the value is NaN."""

    values: Tensor
    mask: Tensor


def measure(
    name: str,
    reward: Reward,
    images: list[Image.Image],
    records: list[PromptRecord],
    *,
    on_error: str = STOP,
    failures: Path | None = None,
) -> Column:
    """Calls `reward` on N images and their records.

    Args:
        on_error: "stop" = any failure raises; "drop", "drop_group" = the images that it fails for are masked. A reward
            that fails as a whole is then asked for each image alone, to find out which.
        failures: Folder for the images, prompts and tracebacks of a failure that raises; None = nowhere.

    Raises:
        RewardError: the reward raised, or returned anything but N finite numbers, and `on_error` is "stop".
    """
    try:
        values, faults = _measured(reward, images, records)
    except Exception as error:
        message = f"reward {name!r} {_told(error, len(images))}"
        if on_error == STOP:
            _save(failures, name, message, images, records, range(len(images)), error)
            raise RewardError(message + _where(failures, name)) from error
        log.warning("%s; each image is scored alone", message)
        values, faults = _one_by_one(reward, images, records)
    if faults and on_error == STOP:
        first = min(faults)
        message = (
            f"reward {name!r} {_lost(faults[first])} for {len(faults)} of {len(images)} images, "
            f"the first for the prompt {records[first].prompt!r}"
        )
        _save(failures, name, message, images, records, sorted(faults))
        raise RewardError(message + _where(failures, name))
    if faults:
        first = min(faults)
        log.warning(
            "reward %r is dropped for %d of %d images, the first for the prompt %r: %s",
            *(name, len(faults), len(images), records[first].prompt, faults[first]),
        )
    mask = torch.ones(len(images), dtype=torch.bool)
    mask[list(faults)] = False
    return Column(values.masked_fill(~mask, torch.nan), mask)


class _WrongShape(UserError):
    """A reward returned something other than one number an image."""


def _measured(reward: Reward, images: list[Image.Image], records: list[PromptRecord]) -> tuple[Tensor, dict[int, str]]:
    """Values [N] and, by row, why there is none."""
    try:
        values, faults = _called(reward, images, records), {}
    except PartialRewardError as error:
        values, faults = _checked(error.values, len(images)), error.reasons
        if not all(row in range(len(images)) for row in faults):
            raise _WrongShape(f"named failures in rows {sorted(faults)} of {len(images)} images") from error
    return values, _not_finite(values) | faults


def _called(reward: Reward, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
    with float32_default(), watched(reward, len(images)):
        return _checked(reward(images, records), len(images))


@contextmanager
def watched(reward: Reward, count: int) -> Iterator[None]:
    """Says who is being waited for, every `WATCH` seconds of a call."""
    start, name = time.monotonic(), getattr(reward, "name", type(reward).__name__)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(WATCH):
            log.warning("reward %s has not returned after %.0f s on %d images", name, time.monotonic() - start, count)

    threading.Thread(target=watch, daemon=True, name="egrpo watch").start()
    try:
        yield
    finally:
        done.set()


def _checked(values: Any, count: int) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float32).detach().cpu()
    if values.shape != (count,):
        raise _WrongShape(f"returned shape {tuple(values.shape)} for {count} images")
    return values


def _told(error: Exception, count: int) -> str:
    if isinstance(error, _WrongShape):
        return str(error)
    return f"failed on {count} images: {type(error).__name__}: {error}"


def _not_finite(values: Tensor) -> dict[int, str]:
    return {row: f"returned {values[row].item()}" for row in (~values.isfinite()).nonzero().flatten().tolist()}


def _lost(reason: str) -> str:
    return reason if reason.startswith("returned ") else f"gave no value ({reason})"


def _one_by_one(
    reward: Reward, images: list[Image.Image], records: list[PromptRecord]
) -> tuple[Tensor, dict[int, str]]:
    values, faults = torch.full((len(images),), torch.nan), {}
    for row, (image, record) in enumerate(zip(images, records, strict=True)):
        try:
            values[row] = _called(reward, [image], [record])[0]
        except Exception as error:
            faults[row] = _told(error, 1)
    return values, _not_finite(values) | faults


def _where(failures: Path | None, name: str) -> str:
    return f"; prompts and images are in {_failure_folder(failures, name)}" if failures else ""


def _failure_folder(failures: Path, name: str) -> Path:
    """Of several ranks each has its own: two that fail at once must not mix their images."""
    return failures / name / f"rank_{distributed.rank()}" if distributed.world_size() > 1 else failures / name


def _save(
    failures: Path | None,
    name: str,
    message: str,
    images: list[Image.Image],
    records: list[PromptRecord],
    rows: Sequence[int],
    error: Exception | None = None,
) -> None:
    """Leaves error.txt, and the first failed images with their records, in `failures/name`."""
    if failures is None:
        return
    folder = _failure_folder(failures, name)
    trace = "".join(traceback.format_exception(error)) if error else ""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(f"{message}\n{trace}")
        for row in rows[:SAVED]:
            images[row].save(folder / f"{row:05d}.png")
            (folder / f"{row:05d}.json").write_text(json.dumps(records[row].to_dict(), indent=2) + "\n")
