"""Seconds by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the seconds of named phases, of the current step and of the whole run."""

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.total: dict[str, float] = defaultdict(float)

    def new_step(self) -> None:
        self.step = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = _now()
        try:
            yield
        finally:
            seconds = _now() - start
            self.step[phase] = self.step.get(phase, 0.0) + seconds
            self.total[phase] += seconds


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # kernels run behind the caller's back; without this the next phase pays for them
    return time.perf_counter()
