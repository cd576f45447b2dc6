"""Seconds and peak memory by phase, for both sides alike."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from egrpo.training.clock import Clock

PHASES = ("text", "image", "decode", "rewards", "reference", "scoring", "backward", "optimizer")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROLLOUT = "rollout"  # the product's own name for the first three together


class Memory(Protocol):
    """What a device's memory is asked."""

    def reset(self) -> int:
        """Starts a new peak; returns the bytes in use."""
        ...

    def peak(self) -> int:
        """Most bytes in use since `reset`."""
        ...


class ProcessMemory:
    """Resident memory of this process, by the kernel's high-water mark.

    Raises:
        ValueError: the mark cannot be set back here.
    """

    def __init__(self) -> None:
        if not Path("/proc/self/clear_refs").exists():
            raise ValueError(f"peak memory of a CPU run is read from /proc, which {sys.platform} lacks: use Linux")
        self._libc = ctypes.CDLL(None)

    def reset(self) -> int:
        # What was freed goes back to the system first: a peak within kept memory would not show.
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError as error:
            raise ValueError(
                f"the peak of resident memory cannot be set back ({error.strerror}: /proc/self/clear_refs); measure "
                "time alone with memory=false"
            ) from error
        return self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM")

    def _read(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


class AllocatorMemory:
    """Memory that torch's allocator has given out on the current accelerator."""

    def reset(self) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


def memory_of(device: torch.device) -> Memory:
    """The memory that a step on `device` fills."""
    return AllocatorMemory() if device.type == "cuda" else ProcessMemory()


class Meter(Clock):
    """Takes the place of the training step's clock: splits a rollout, and measures memory where that is asked for.

    Memory is measured in a run of its own, since giving memory back between phases costs time.

    Args:
        memory: None = seconds only.
        clock: "wall", or "cpu" = processor seconds of this process, which other work on the machine hardly changes.
    """

    def __init__(self, memory: Memory | None = None, clock: str = "wall") -> None:
        super().__init__()
        self.clock = clock
        self.memory = memory
        self.seconds: dict[str, float] = {}
        self.before: dict[str, int] = {}  # bytes in use before the phase was first entered
        self.peaks: dict[str, int] = {}  # bytes
        self._open: tuple[str, float] | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.switch("text" if phase == ROLLOUT else phase)
        try:
            with super().__call__(phase):
                yield
        finally:
            self.switch(None)

    def switch(self, phase: str | None) -> None:
        """Ends the phase that is running and starts another; None = none."""
        if self._open is not None:
            name, start = self._open
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
            if self.memory is not None:
                self.peaks[name] = max(self.peaks.get(name, 0), self.memory.peak())
        self._open = None
        if phase is not None:
            if self.memory is not None:
                self.before.setdefault(phase, self.memory.reset())
            self._open = (phase, self.now())

    def now(self) -> float:
        """Seconds, once the accelerator has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return CLOCKS[self.clock]()

    @property
    def scoring_bytes(self) -> int:
        """Peak of scoring and backward pass above what was in use before scoring."""
        return max(self.peaks["scoring"], self.peaks["backward"]) - self.before["scoring"]


@contextmanager
def split_rollout(policy: Any, meter: Meter) -> Iterator[None]:
    """Within, a rollout of `policy` tells `meter` where images begin and when it decodes.

    The first image prompt ends the plans; what decodes is told apart from what draws. Both are public methods.
    """
    first = True

    def image_ids(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if first:
            meter.switch("image")
            first = False
        return plain_ids(*args, **kwargs)

    def decode(*args: Any, **kwargs: Any) -> Any:
        meter.switch("decode")
        try:
            return plain_decode(*args, **kwargs)
        finally:
            meter.switch("image")

    plain_ids, plain_decode = policy.image_ids, policy.decode
    policy.image_ids, policy.decode = image_ids, decode
    try:
        yield
    finally:
        del policy.image_ids, policy.decode
