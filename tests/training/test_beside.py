"""A call in a thread beside others."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from egrpo.rewards.placement import Placement
from egrpo.training.beside import beside, can_overlap


def surroundings() -> tuple[str, int, bool]:
    return threading.current_thread().name, torch.get_num_threads(), torch.is_grad_enabled()


def test_the_call_runs_while_the_caller_goes_on():
    started = threading.Event()
    with beside(True, started.wait, 30) as result:
        started.set()  # a call that ran first, or only when asked, would never see it in time
        assert result() is True


def test_its_thread_has_the_callers_settings_and_no_gradients():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with beside(True, surroundings) as result:
            name, threads, gradients = result()
    finally:
        torch.set_num_threads(before)
    assert name != threading.current_thread().name and threads == 2 and not gradients


def test_without_it_the_call_waits_until_its_result_is_asked_for():
    with beside(False, surroundings) as result:
        assert result()[0] == threading.current_thread().name


@pytest.mark.parametrize("enabled", [True, False])
def test_its_error_is_the_callers(enabled):
    with pytest.raises(ZeroDivisionError), beside(enabled, lambda: 1 / 0) as result:
        result()


class FakeStream:
    """Records the order in which streams wait and are entered; no kernel is needed to see it."""

    def __init__(self, name: str, log: list[tuple[str, ...]]):
        self.name, self.log, self.device = name, log, "cuda:1"

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append((self.name, "waits for", other.name))


@pytest.mark.parametrize("fails", [False, True])
def test_on_a_gpu_it_has_a_stream_behind_the_callers_and_the_caller_comes_behind_it(monkeypatch, fails):
    log: list[tuple[str, ...]] = []
    callers = FakeStream("caller's", log)

    @contextmanager
    def entered(stream):
        log.append((stream.name, "entered in", threading.current_thread().name))
        yield

    def work() -> int:
        log.append(("work",))
        return 1 // (not fails)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream("own", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: callers)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), beside(True, work) as result:
        assert result() == 1
    assert log == [
        ("own", "waits for", "caller's"),
        ("own", "entered in", "egrpo_0"),
        ("work",),
        ("caller's", "waits for", "own"),
    ]


@pytest.mark.parametrize(
    "device, precision, overlaps", [("cuda", "tf32", False), ("cpu", "tf32", True), ("cuda", "bfloat16", True)]
)
def test_what_changes_the_whole_processs_products_runs_alone(device, precision, overlaps):
    reward = SimpleNamespace(placement=Placement(torch.nn.Linear(1, 1), precision=precision))
    reward.placement.device = torch.device(device)
    assert can_overlap([reward, lambda images, records: None]) is overlaps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_result_is_whole_and_of_the_callers_latest_tensors():
    value = torch.zeros(1 << 24, device="cuda")
    for _ in range(50):
        value += 1  # still running when the call starts

    def work() -> torch.Tensor:
        return (value * 2).sum() / len(value)

    with beside(True, work) as result:
        found = result()
    assert found.item() == 100


def test_a_step_is_the_same_with_rewards_beside_the_reference(runs, tmp_path):
    words = ("trainer.limit_val_batches=0", "reward=[shapes_oracle,hps]", "data.group_across_ranks=false")
    rows = [
        runs.run(
            tmp_path / name,
            *words,
            f"rollout.overlap_rewards={name}",
            "reward_models=package:egrpo/shapes/assets/rewards",
        )
        for name in ("true", "false")
    ]
    assert rows[0] == rows[1] and len(rows[0]) >= 2
