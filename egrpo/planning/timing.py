"""How long a step takes: computing, moving bytes, launching kernels and exchanging weights, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from egrpo.base.errors import UserError
from egrpo.planning.flops import Effort, backward, images, padding, pixels, plans, scoring
from egrpo.planning.standing import Parts, optimizer_state
from egrpo.planning.traffic import Traffic, host_step_bytes, traffic
from egrpo.planning.workload import Assumptions, Lengths
from egrpo.policy.capture import WIDTH


@dataclass(frozen=True)
class Device:
    """An accelerator, by its datasheet.

    Args:
        name: For the report.
        memory_gb: 10^9 bytes.
        tflops: Dense peak by type, 10^12 operations a second.
        bandwidth_gb_s: Of its memory.
        link_gb_s: To the other devices of the host, each way.
        accelerator: Whether kernels are launched from a host, and can be captured as CUDA graphs.

    Raises:
        UserError: a number is missing or not above 0.
    """

    name: str
    memory_gb: float
    tflops: Mapping[str, float]
    bandwidth_gb_s: float
    link_gb_s: float
    accelerator: bool = True

    def __post_init__(self) -> None:
        numbers = {key: value for key, value in vars(self).items() if key not in ("name", "tflops", "accelerator")}
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
    exchange: float = 0  # seconds of exchange with other devices and the host; part of `seconds` if not hidden


def step_costs(parts: Parts, lengths: Lengths, device: Device, assumed: Assumptions) -> list[Cost]:
    """All phases of a rollout and its updates."""
    arch, work = parts.arch, parts.work
    drawing = assumed.layer_ms(parts.decoding)
    width = WIDTH if parts.caches_stay else 1
    forward = scoring(arch, work, lengths)
    computed: dict[str, tuple[float, float]] = {}
    if parts.keeps_copy:
        computed["copying"] = (0, memory_seconds(2 * arch.trained_bytes, device, assumed))
    drawn = {"plans": plans(arch, work, lengths, width)} if work.cot else {}
    for name, effort in {**drawn, "images": images(arch, work, lengths, width)}.items():
        computed[name] = (effort.flops, drawing_seconds(effort, parts, drawing, device, assumed))
    computed |= {
        "pixels": _computed(pixels(arch, work), parts, device, assumed),
        "rewards": reward_seconds(parts, device, assumed),
        "reference": _computed(scoring(arch, work, lengths, reference=True), parts, device, assumed),
    }
    if parts.ranks_padding:
        computed["padding"] = _computed(padding(arch, work, lengths), parts, device, assumed)
    computed |= {
        "scoring": _computed(repeated(forward, work.updates), parts, device, assumed),
        "backward": _computed(repeated(backward(arch, work, lengths), work.updates), parts, device, assumed),
        "update": (0, update_seconds(parts, device, assumed)),
    }
    moved = traffic(parts)
    costs = []
    for name, (flops, taken) in computed.items():
        found = moved.get(name, Traffic())
        exchanged = exchange_seconds(found, device, assumed)
        together = max(taken, exchanged) if found.overlapped else taken + exchanged
        costs.append(Cost(name, flops, together, exchanged))
    return costs


def _computed(effort: Effort, parts: Parts, device: Device, assumed: Assumptions) -> tuple[float, float]:
    """Operations and seconds of passes over whole sequences: computing, or launching the layers' kernels."""
    launching = effort.passes * parts.arch.layers * assumed.launch_ms / 1e3 if device.accelerator else 0.0
    return effort.flops, max(compute_seconds(effort.flops, parts.compute_type, device, assumed), launching)


def drawing_seconds(effort: Effort, parts: Parts, layer_ms: float, device: Device, assumed: Assumptions) -> float:
    """Prompts, then tokens: weights and cache are read for each, and a layer takes some time whatever it reads.

    What eager loops launch from the host hides the device's work, or is hidden by it.
    """
    kind = parts.compute_type
    reading = compute_seconds(effort.reading, kind, device, assumed)
    busy = max(
        compute_seconds(effort.flops - effort.reading, kind, device, assumed),
        memory_seconds(effort.bytes, device, assumed),
    )
    fixed = effort.passes * parts.arch.layers * layer_ms / 1e3 if device.accelerator else 0.0
    return reading + (max(busy, fixed) if parts.decoding == "eager" else busy + fixed)


def reward_seconds(parts: Parts, device: Device, assumed: Assumptions) -> tuple[float, float]:
    """Operations, and seconds: of each model computing, or what an image was measured to take; and moving the models
    that wait on the host."""
    rows, taken = parts.work.rows, 0.0
    for model in parts.rewards:
        computing = compute_seconds(model.flops, model.compute_type, device, assumed)
        taken += rows * max(computing, model.image_ms / 1e3)
        taken += model.bytes * model.offload / (1e9 * assumed.host_link_gb_s)  # nothing is copied back
    return sum(model.flops for model in parts.rewards) * rows, taken


def update_seconds(parts: Parts, device: Device, assumed: Assumptions) -> float:
    """On the device, or of an optimizer on the host there."""
    if parts.sharding.offload_optimizer:
        return host_step_bytes(parts) / (1e9 * assumed.host_step_gb_s)
    return memory_seconds(parts.work.updates * updated_bytes(parts), device, assumed)


def exchange_seconds(moved: Traffic, device: Device, assumed: Assumptions) -> float:
    """Of rings between devices, and of copies between device and host."""
    link = moved.link / (1e9 * device.link_gb_s * assumed.link_efficiency)
    return link + moved.host / (1e9 * assumed.host_link_gb_s)


def compute_seconds(flops: float, dtype: str, device: Device, assumed: Assumptions) -> float:
    return flops / (device.peak(dtype) * assumed.compute_efficiency)


def memory_seconds(size: float, device: Device, assumed: Assumptions) -> float:
    return size / (1e9 * device.bandwidth_gb_s * assumed.memory_efficiency)


def repeated(effort: Effort, times: int) -> Effort:
    """`times` as much."""
    return Effort(effort.flops * times, effort.passes * times, effort.bytes * times, effort.reading * times)


def updated_bytes(parts: Parts) -> float:
    """Moved by clipping (the gradient twice), by the update (gradient read, weights and states read and written) and by
    what is made on the way and read again."""
    arch = parts.arch
    made = arch.trained * (parts.optimizer.scratch + (6 if parts.sharding.stage else 0))
    return (6 * arch.trained_bytes + 2 * optimizer_state(parts) + 2 * made) / parts.sharding.optimizer
