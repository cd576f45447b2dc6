"""Phases are timed without waiting for the GPU; seconds are there when they are asked for."""

from __future__ import annotations

import time

import pytest
import torch

from egrpo.training.clock import Clock


def test_seconds_add_up_by_phase_of_the_step_and_of_the_run():
    clock = Clock()
    for _ in range(2):
        with clock("a"):
            time.sleep(0.02)
    assert clock.step["a"] == clock.total["a"] >= 0.04
    clock.new_step()
    with clock("b"):
        pass
    assert list(clock.step) == ["b"] and clock.total["a"] >= 0.04


class Event:
    """A GPU's event whose time is the number of events before it, in milliseconds."""

    recorded, waits = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.recorded
        Event.recorded += 1

    def synchronize(self) -> None:
        Event.waits += 1

    def elapsed_time(self, end: Event) -> float:
        return float(end.at - self.at)


def test_a_step_waits_for_the_gpu_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: pytest.fail("a phase waits for the GPU"))
    clock = Clock()
    for _ in range(8):
        with clock("scoring"):
            pass
        with clock("backward"):
            pass
    assert Event.waits == 0
    assert clock.step == pytest.approx({"scoring": 0.008, "backward": 0.008}) and Event.waits == 1
    assert clock.total["scoring"] == pytest.approx(0.008) and Event.waits == 1
