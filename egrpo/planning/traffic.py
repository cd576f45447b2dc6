"""Bytes that a device exchanges with the others, and with the host, in each phase of a step."""

from __future__ import annotations

from dataclasses import dataclass

from egrpo.planning.standing import Parts, optimizer_state, passes_of_update


@dataclass(frozen=True)
class Traffic:
    """Of one phase.

    Args:
        link: Bytes to or from other devices, whichever way has more.
        host: Bytes between device and host.
        overlapped: Whether it runs while the device computes.
    """

    link: float = 0
    host: float = 0
    overlapped: bool = False


def traffic(parts: Parts) -> dict[str, Traffic]:
    """By phase; those without any are left out."""
    sharding = parts.sharding
    if sharding.keeps_copy or sharding.parameters > 1:
        return _divided(parts)
    ring = _ring(parts)
    gradients = parts.arch.trained_bytes * ring
    updates = parts.work.updates
    if sharding.stage:  # every pass adds its gradients up over all devices; the weights come back after the step
        found = {
            "backward": Traffic(2 * gradients * passes_of_update(parts) * updates),
            "update": Traffic(gradients * updates),
        }
        if sharding.offload_optimizer:
            found["update"] = Traffic(gradients * updates, _offloaded_step(parts))
        return found
    return {"update": Traffic(2 * gradients * updates)}


def _divided(parts: Parts) -> dict[str, Traffic]:
    """Weights are gathered for every pass of a micro-batch, gradients go to those that hold their weights."""
    arch, work, sharding = parts.arch, parts.work, parts.sharding
    updates, ring = work.updates, _ring(parts)
    weights = arch.parameter_bytes - arch.outside_bytes
    from_host = 1 / sharding.parameters if sharding.offload_parameters else 0.0
    passes = work.micro_batches * (1 + work.cot)

    def moved(gathers: float, size: float, more: float = 0.0) -> Traffic:
        return Traffic(gathers * size * ring + more, gathers * size * from_host, overlapped=sharding.by_layer)

    # DeepSpeed gathers a layer for its recomputation and again for its gradient; FSDP2 keeps it in between.
    again = 2 if arch.checkpointing and not sharding.by_layer else 1
    sums = arch.trained_bytes * ring * passes_of_update(parts) * updates
    backward = moved(again * passes * updates, weights, sums)
    found = {
        "reference": moved(passes, arch.reference_bytes or weights),
        "scoring": moved(passes * updates, weights),
        "backward": backward,
    }
    if parts.ranks_padding:
        found["padding"] = moved(work.micro_batches, weights)
    if parts.keeps_copy:  # of the weights that have changed
        found["copying"] = Traffic(arch.trained_bytes * ring, arch.trained_bytes * from_host)
    else:
        tokens = len(work.chunks) * work.image_tokens
        found["images"] = Traffic(tokens * weights * ring, tokens * weights * from_host)
    if sharding.offload_optimizer:
        found["update"] = Traffic(0, _offloaded_step(parts))
    return found


def _offloaded_step(parts: Parts) -> float:
    """Gradients to the host, and weights back where they stay on the device."""
    arch, sharding = parts.arch, parts.sharding
    return parts.work.updates * arch.trained_bytes / sharding.optimizer * (2 - sharding.offload_parameters)


def host_step_bytes(parts: Parts) -> float:
    """What an optimizer on the host reads and writes of this device's part: states and masters both ways, gradients."""
    if not parts.sharding.offload_optimizer:
        return 0.0
    return parts.work.updates * (2 * optimizer_state(parts) + 4 * parts.arch.trained) / parts.sharding.optimizer


def _ring(parts: Parts) -> float:
    """The share of a tensor that a device takes from the others to have it whole."""
    count = parts.sharding.devices
    return (count - 1) / count
