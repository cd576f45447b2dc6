"""How long a step takes, roughly: the slowest of computing, moving bytes and launching kernels, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from egrpo.base.errors import UserError
from egrpo.planning.flops import Effort, backward, images, pixels, plans, scoring
from egrpo.planning.memory import Parts, update_bytes
from egrpo.planning.workload import Assumptions, Lengths


@dataclass(frozen=True)
class Device:
    """An accelerator, by its datasheet.

    Args:
        name: For the report.
        memory_gb: 10^9 bytes.
        tflops: Dense peak by type, 10^12 operations a second.
        bandwidth_gb_s: Of its memory.
        link_gb_s: To the other devices of the host, each way.

    Raises:
        UserError: a number is missing or not above 0.
    """

    name: str
    memory_gb: float
    tflops: Mapping[str, float]
    bandwidth_gb_s: float
    link_gb_s: float

    def __post_init__(self) -> None:
        numbers = {key: value for key, value in vars(self).items() if key not in ("name", "tflops")}
        for key, value in {**numbers, **{f"tflops.{k}": v for k, v in self.tflops.items()}}.items():
            if not value > 0:
                raise UserError(f"device.{key}={value}: it must be above 0")

    def peak(self, dtype: str) -> float:
        """Operations a second in a type, in float32's rate where the datasheet has no other."""
        if dtype not in self.tflops and "float32" not in self.tflops:
            raise UserError(f"device.tflops has neither {dtype} nor float32: add device.tflops.{dtype}=...")
        return 1e12 * self.tflops.get(dtype, self.tflops.get("float32", 0.0))


@dataclass(frozen=True)
class Cost:
    """One phase: operations on one device, and seconds."""

    name: str
    flops: float
    seconds: float


def seconds(effort: Effort, parts: Parts, device: Device, assumed: Assumptions) -> float:
    """The slowest of the three."""
    compute = effort.flops / (device.peak(_name(parts)) * assumed.compute_efficiency)
    memory = effort.bytes / (1e9 * device.bandwidth_gb_s * assumed.memory_efficiency)
    launch = effort.passes * parts.arch.layers * assumed.launch_ms / 1e3
    return max(compute, memory, launch)


def step_costs(parts: Parts, lengths: Lengths, device: Device, assumed: Assumptions) -> list[Cost]:
    """All phases of a rollout and its updates."""
    arch, work = parts.arch, parts.work
    forward = scoring(arch, work, lengths)
    efforts = {"plans": plans(arch, work, lengths)} if work.cot else {}
    efforts |= {
        "images": images(arch, work, lengths),
        "pixels": pixels(arch, work),
        "rewards": Effort(sum(model.flops for model in parts.rewards) * work.rows, 0, 0),
        "reference": scoring(arch, work, lengths, reference=True),
        "scoring": repeated(forward, work.updates),
        "backward": repeated(backward(arch, work, lengths), work.updates),
        "update": Effort(0, 0, work.updates * updated_bytes(parts)),
    }
    costs = [Cost(name, effort.flops, seconds(effort, parts, device, assumed)) for name, effort in efforts.items()]
    moved = 2 * sum(model.bytes for model in parts.rewards if model.offload) / (1e9 * assumed.host_link_gb_s)
    costs = [Cost(c.name, c.flops, c.seconds + moved * (c.name == "rewards")) for c in costs]
    return costs + [Cost("exchange", 0, exchange(parts, device, assumed))]


def repeated(effort: Effort, times: int) -> Effort:
    """`times` as much."""
    return Effort(effort.flops * times, effort.passes * times, effort.bytes * times)


def updated_bytes(parts: Parts) -> float:
    """Moved by clipping (the gradient twice) and by the update (gradient read, weights and states read and written)."""
    arch, share = parts.arch, parts.sharding.optimizer
    states = parts.arch.trained * parts.optimizer.state
    return (4 * arch.trained_bytes + 2 * arch.trained_bytes + 2 * states + 2 * update_bytes(parts) * share) / share


def exchange(parts: Parts, device: Device, assumed: Assumptions) -> float:
    """Seconds that devices exchange gradients and weights, as rings do, nothing hidden behind computing; and seconds
    between host and device for what is offloaded."""
    sharding, arch, work = parts.sharding, parts.arch, parts.work
    count = sharding.devices
    gradients = work.updates * arch.trained_bytes * (1 if sharding.gradients > 1 else 2)
    passes = work.micro_batches * (1 + work.cot) * (1 + 2 * work.updates)  # reference, scoring, backward
    draws = 1 if assumed.gather_for_rollout else passes_of_rollout(parts)
    weights = arch.parameter_bytes * (passes + draws) if sharding.parameters > 1 else 0
    shared = (gradients + weights) * (count - 1) / count / (1e9 * device.link_gb_s)
    hosted = 0.0
    if sharding.offload_optimizer:
        hosted += work.updates * 2 * arch.trained_bytes / sharding.optimizer
    if sharding.offload_parameters:
        hosted += arch.parameter_bytes * (passes + draws) / sharding.parameters
    return shared + hosted / (1e9 * assumed.host_link_gb_s)


def passes_of_rollout(parts: Parts) -> float:
    """Passes through the language model, at most, while sampling images."""
    return len(parts.work.chunks) * parts.work.image_tokens


def _name(parts: Parts) -> str:
    return str(parts.arch.compute_dtype).removeprefix("torch.")
