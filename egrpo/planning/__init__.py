"""What a training run takes, worked out before it is started: memory, tokens, operations, time."""

from egrpo.planning.planner import Plan, PlanError, make_plan, ways_out
from egrpo.planning.report import refusal, report
from egrpo.planning.timing import Device
from egrpo.planning.workload import Assumptions

__all__ = ["Assumptions", "Device", "Plan", "PlanError", "make_plan", "refusal", "report", "ways_out"]
