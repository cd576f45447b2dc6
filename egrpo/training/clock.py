"""Seconds by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Adds up the seconds of named phases, of the current step and of the whole run.

    On a GPU, where kernels run behind the caller's back, phases are marked by events in its stream: nothing waits for
    the GPU until seconds are asked for.
    """

    def __init__(self) -> None:
        self._step: dict[str, float] = {}
        self._total: dict[str, float] = defaultdict(float)
        self._marked: list[tuple[str, Any, Any]] = []  # phases with the events that they lie between

    @property
    def step(self) -> dict[str, float]:
        """Seconds of each phase of the current step."""
        self._settle()
        return self._step

    @property
    def total(self) -> dict[str, float]:
        """Seconds of each phase of the whole run."""
        self._settle()
        return self._total

    def new_step(self) -> None:
        self._settle()
        self._step = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        start = _mark() if on_gpu else time.perf_counter()
        try:
            yield
        finally:
            if on_gpu:
                self._marked.append((phase, start, _mark()))
            else:
                self._add(phase, time.perf_counter() - start)

    def _settle(self) -> None:
        if self._marked:
            self._marked[-1][2].synchronize()
        for phase, start, end in self._marked:
            self._add(phase, start.elapsed_time(end) / 1000)
        self._marked.clear()

    def _add(self, phase: str, seconds: float) -> None:
        self._step[phase] = self._step.get(phase, 0.0) + seconds
        self._total[phase] += seconds


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
