"""From a composed configuration to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.base.errors import UserError
from egrpo.planning.architecture import read_architecture
from egrpo.planning.memory import Parts, Phase, optimizer_dtype, phases
from egrpo.planning.optimizers import optimizer_cost
from egrpo.planning.rewards import read_rewards
from egrpo.planning.sharding import read_sharding
from egrpo.planning.timing import Cost, Device, step_costs
from egrpo.planning.workload import Assumptions, Lengths, limit_lengths, mean_lengths, read_workload

GB = 1e9
JUDGED = ("limits", "mean")


class PlanError(UserError):
    """The run cannot work as planned; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What a run takes on each of its devices."""

    device: Device
    devices: int
    parts: Parts
    assumed: Assumptions
    limits: Lengths
    mean: Lengths
    at_limits: list[Phase]
    at_mean: list[Phase]
    costs: list[Cost]  # of a step, at mean lengths
    steps: int  # rollouts of the whole run
    refuse_at: str = "limits"

    @property
    def judged(self) -> list[Phase]:
        """The phases that must fit."""
        return self.at_limits if self.refuse_at == "limits" else self.at_mean

    @property
    def peak(self) -> Phase:
        """The phase that needs the most."""
        return largest(self.judged)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.device.memory_gb * GB

    @property
    def step_seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)


def largest(found: list[Phase]) -> Phase:
    """The phase with the highest total."""
    return max(found, key=lambda phase: phase.total)


def make_plan(cfg: DictConfig) -> Plan:
    """Of a run composed with conf/plan.yaml; loads no weights.

    Raises:
        UserError: a setting is out of range, or a size is not known; the message says how to mend it.
    """
    if cfg.refuse_at not in JUDGED:
        raise UserError(f"refuse_at={cfg.refuse_at}: choose limits or mean")
    device: Device = instantiate(cfg.device, _convert_="object")
    assumed: Assumptions = instantiate(cfg.assumptions)
    devices = device_count(cfg.devices) * int(cfg.trainer.get("num_nodes", 1))
    arch = read_architecture(cfg)
    work = read_workload(cfg, devices, arch.image_tokens)
    strategy = cfg.trainer.strategy
    raw = OmegaConf.to_container(strategy, resolve=True) if isinstance(strategy, DictConfig) else strategy
    sharding = read_sharding(raw, devices)
    make = instantiate(cfg.optimizer)
    accelerated = str(cfg.trainer.accelerator) != "cpu"
    # torch chooses foreach by itself on an accelerator alone.
    cost = optimizer_cost(make, optimizer_dtype(arch, sharding), foreach=accelerated)
    parts = Parts(
        arch,
        work,
        sharding,
        cost,
        read_rewards(cfg, work.rows),
        assumed.gather_for_rollout,
        caches_stay=accelerated and cfg.rollout.decoding != "eager" and sharding.whole,
    )
    limits, mean = (find(cfg.model, work.cot, assumed) for find in (limit_lengths, mean_lengths))
    return Plan(
        device=device,
        devices=devices,
        parts=parts,
        assumed=assumed,
        limits=limits,
        mean=mean,
        at_limits=phases(parts, limits),
        at_mean=phases(parts, mean),
        costs=step_costs(parts, mean, device, assumed),
        steps=-(-int(cfg.trainer.max_steps) // work.updates),
        refuse_at=cfg.refuse_at,
    )


def device_count(devices: Any) -> int:
    """Devices of a node, as the trainer takes them: a number, or a list of indices.

    Raises:
        UserError: it is left to the machine, which a plan does not know.
    """
    text = str(devices)
    if OmegaConf.is_list(devices) or isinstance(devices, (list, tuple)):
        return len(devices)
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"devices={devices}: a plan needs their number, such as devices=8")
    return int(text)


def ways_out(plan: Plan, cfg: DictConfig, replan: Callable[[list[str]], Plan]) -> list[str]:
    """Overrides that make the plan fit: all that do alone, or else the fewest, taken in order, that do together.

    Args:
        plan: Does not fit.
        cfg: Its configuration; `ways_out` lists the candidates.
        replan: Plans the same run with further overrides.

    Returns:
        Each a text of one or more overrides; empty where nothing helps.
    """
    tried = [(expanded, _peak(replan, expanded)) for way in cfg.ways_out if (expanded := expand(str(way), cfg))]
    room = plan.device.memory_gb * GB
    alone = [" ".join(way) for way, peak in tried if peak <= room]
    if alone:
        return alone
    taken: list[list[str]] = []
    best = plan.peak.total
    for way, _ in tried:
        peak = _peak(replan, _joined([*taken, way]))
        if peak < best:
            taken, best = [*taken, way], peak
        if best <= room:
            break
    else:
        return []
    for way in list(taken):
        rest = [other for other in taken if other is not way]
        if _peak(replan, _joined(rest)) <= room:
            taken = rest
    return [" ".join(_joined(taken))]


def expand(way: str, cfg: DictConfig) -> list[str]:
    """`reward.*.reward.offload=true` -> one override for each reward that has the setting."""
    if "*" not in way:
        return [way]
    head, _, tail = way.partition(".*.")
    key = tail.partition("=")[0]
    names = [str(name) for name, node in cfg[head].items() if OmegaConf.select(node, key) is not None]
    return [f"{head}.{name}.{tail}" for name in names]


def _joined(ways: Iterable[list[str]]) -> list[str]:
    return [override for way in ways for override in way]


def _peak(replan: Callable[[list[str]], Plan], overrides: list[str]) -> float:
    try:
        return replan(overrides).peak.total
    except ValueError:  # this way is none for such a run
        return float("inf")
