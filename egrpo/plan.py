"""`python -m egrpo.plan +experiment=NAME device=h100`: what a training run takes, without loading any weights.

Prints memory by phase, images and tokens a step, operations and an estimated time; ends with an error where a device's
memory is not enough. All overrides of `python -m egrpo.train` apply.
"""

from __future__ import annotations

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from egrpo.entry import run
from egrpo.planning import Plan, PlanError, make_plan, refusal, report, ways_out


def plan(cfg: DictConfig) -> None:
    """Prints the plan; raises PlanError where it does not fit."""
    made = make_plan(cfg)
    print(report(made), flush=True)
    if not made.fits:
        raise PlanError(refusal(made, ways_out(made, cfg, replan)))


def replan(overrides: list[str]) -> Plan:
    """The command's own plan with further overrides."""
    given = list(HydraConfig.get().overrides.task)
    changed = {_key(override) for override in overrides}
    return make_plan(compose("plan", [*(g for g in given if _key(g) not in changed), *overrides]))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


if __name__ == "__main__":
    run(plan, "plan")
