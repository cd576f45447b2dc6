"""From a composed configuration to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.algorithm.entropy_policies import ranks_padding
from egrpo.base.errors import UserError
from egrpo.planning.architecture import Architecture, read_architecture
from egrpo.planning.memory import Phase, phases
from egrpo.planning.optimizers import optimizer_cost
from egrpo.planning.rewards import read_rewards
from egrpo.planning.saving import Saved, saved
from egrpo.planning.sharding import read_sharding
from egrpo.planning.standing import Parts, optimizer_dtype
from egrpo.planning.timing import Cost, Device, step_costs
from egrpo.planning.workload import Assumptions, Lengths, limit_lengths, mean_lengths, read_workload
from egrpo.training.checks import check_recomputed, check_run

GB = 1e9
JUDGED = ("limits", "mean")
# What a run's clock calls phases that have another name here; "before" ends with the first step.
CLOCK = {"preparing": "before", "copying": "rollout", "plans": "rollout", "images": "rollout", "pixels": "rollout"}
CLOCK |= {"update": "optimizer"}


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
    checkpoint: Saved
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

    def peaks(self, at: str = "mean") -> dict[str, float]:
        """Bytes of one device at most in each phase, and in the whole "run", by the names of a run's clock: before,
        rollout, rewards, reference, padding (if it is scored), scoring, backward, optimizer, checkpoint.

        Args:
            at: "mean" or "limits" of the lengths of prompts and plans.
        """
        found: dict[str, float] = {}
        for phase in self.at_mean if at == "mean" else self.at_limits:
            name = CLOCK.get(phase.name, phase.name)
            found[name] = max(phase.total, found.get(name, 0.0))
        return {**found, "run": max(found.values())}

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase of a step, by the names of a run's clock."""
        found: dict[str, float] = {}
        for cost in self.costs:
            name = CLOCK.get(cost.name, cost.name)
            found[name] = found.get(name, 0.0) + cost.seconds
        return found


def largest(found: list[Phase]) -> Phase:
    """The phase with the highest total."""
    return max(found, key=lambda phase: phase.total)


def make_plan(cfg: DictConfig) -> Plan:
    """Of a run composed with conf/plan.yaml; loads no weights.

    Raises:
        UserError: a setting is out of range, training would refuse it, or a size is not known; the message says how to
            mend it.
    """
    if cfg.refuse_at not in JUDGED:
        raise UserError(f"refuse_at={cfg.refuse_at}: choose limits or mean")
    check_run(cfg)
    device: Device = instantiate(cfg.device, _convert_="object")
    assumed: Assumptions = instantiate(cfg.assumptions)
    devices = device_count(cfg.devices) * int(cfg.trainer.get("num_nodes", 1))
    arch = read_architecture(cfg)
    work = read_workload(cfg, devices, arch.image_tokens)
    strategy = cfg.trainer.strategy
    raw = OmegaConf.to_container(strategy, resolve=True) if isinstance(strategy, DictConfig) else strategy
    sharding = read_sharding(raw, devices)
    if sharding.stage >= 3 and arch.checkpointing:
        check_recomputed(arch.trains_all_layers)
    make = instantiate(cfg.optimizer)
    accelerated = device.accelerator and str(cfg.trainer.accelerator) != "cpu"
    # torch chooses foreach by itself on an accelerator alone.
    cost = optimizer_cost(make, optimizer_dtype(arch, sharding), foreach=accelerated)
    keeps_copy = sharding.keeps_copy and cfg.rollout.gather == "full"
    decoding = decoding_way(cfg.rollout.decoding, arch, accelerated and (sharding.whole or keeps_copy))
    parts = Parts(
        arch,
        work,
        sharding,
        cost,
        read_rewards(cfg, work.rows),
        keeps_copy=keeps_copy,
        caches_stay=decoding != "eager",
        reads_policy=str(cfg.reference.get("embeddings", "own")) == "policy",
        ranks_padding=work.cot and ranks_padding(instantiate(cfg.entropy_policy)),
        decoding=decoding,
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
        checkpoint=saved(parts, cfg.callbacks, assumed),
        refuse_at=cfg.refuse_at,
    )


def decoding_way(wanted: str, arch: Architecture, can_capture: bool) -> str:
    """How tokens are drawn, as `egrpo.policy.capture.Steps` does: layers with an adapter are captured, not fused."""
    if not can_capture or wanted in ("eager", "static"):
        return "eager"
    return "captured" if wanted == "captured" or arch.adapter_rank else "compiled"


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
    """A way as single overrides; `reward.*.reward.offload=true` -> one for each reward that has the setting."""
    if "*" not in way:
        return way.split()
    head, _, tail = way.partition(".*.")
    key = tail.partition("=")[0]
    names = [str(name) for name, node in cfg[head].items() if OmegaConf.select(node, key) is not None]
    return [f"{head}.{name}.{tail}" for name in names]


def _joined(ways: Iterable[list[str]]) -> list[str]:
    """All overrides; of two for one setting the later."""
    return list({override.partition("=")[0]: override for way in ways for override in way}.values())


def _peak(replan: Callable[[list[str]], Plan], overrides: list[str]) -> float:
    try:
        return replan(overrides).peak.total
    except (ValueError, HydraException):  # training would refuse it, or such a run has no such setting
        return float("inf")
