"""A call in a thread beside others."""

from __future__ import annotations

import threading

import pytest
import torch

from egrpo.training.beside import beside


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
