"""What `python -m egrpo.plan` says of a run, for the table."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir

from egrpo.paths import config_dir
from egrpo.planning import make_plan


def planned(overrides: list[str], device: str) -> dict[str, Any]:
    """GB and seconds of one device, at the mean lengths that the runs have (plans are all of full length).

    Args:
        overrides: Of `python -m egrpo.train`.
        device: A name in conf/device.
    """
    words = [word for word in overrides if "callbacks." not in word]
    plans = next(word.split("=")[1] for word in words if word.startswith("model.max_plan_tokens="))
    with initialize_config_dir(config_dir(), version_base="1.3"):
        own = [f"device={device}", f"assumptions.plan_tokens={plans}", "assumptions.longest_plan=1", "run_dir=."]
        plan = make_plan(compose("plan", [*words, *own]))
    return {
        "peak": max(phase.total for phase in plan.at_mean) / 1e9,
        "phases": {phase.name: round(phase.total / 1e9, 1) for phase in plan.at_mean},
        "step": plan.step_seconds,
        "seconds": {cost.name: cost.seconds for cost in plan.costs},
    }
