"""Bytes that each strategy keeps on a device, and what it takes for a while to gather, add up and step.

DeepSpeed's sizes are those of its sources, 0.19.8: runtime/zero/stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from egrpo.planning.architecture import Architecture
from egrpo.planning.optimizers import OptimizerCost
from egrpo.planning.rewards import RewardModel
from egrpo.planning.sharding import Sharding
from egrpo.planning.workload import Workload
from egrpo.policy.rollout_copy import BUCKET

ROWS = (
    *("parameters", "rollout copy", "gathered weights", "gradients", "optimizer", "reference"),
    *("reward models", "KV cache", "logits", "activations"),
)
FSDP_LIVE_LAYERS = 2  # the one at work and the next
SUM_BUCKET = 2**25  # elements that `egrpo.distributed.sum_in_place` puts together, but for the last tensor
FLOAT32, FLOAT64 = 4, 8


@dataclass(frozen=True)
class Parts:
    """What the memory of a step is made of."""

    arch: Architecture
    work: Workload
    sharding: Sharding
    optimizer: OptimizerCost  # of the type that the optimizer works on
    rewards: Sequence[RewardModel]
    keeps_copy: bool = False  # divided weights have a whole copy, which rollouts read
    caches_stay: bool = False  # buffers that captured steps read stay from one rollout to the next
    reads_policy: bool = False  # the reference's text embeddings are the policy's
    ranks_padding: bool = False  # the entropies of plans' padding are scored too
    decoding: str = "eager"  # how tokens are drawn: eager, captured (CUDA graphs), compiled (and fused layers)

    @property
    def compute_type(self) -> str:
        """Of matrix products, as torch names it."""
        return str(self.arch.compute_dtype).removeprefix("torch.")


def standing(parts: Parts) -> dict[str, float]:
    """What is there in every phase, after the first step."""
    arch, sharding = parts.arch, parts.sharding
    rows: dict[str, float] = dict.fromkeys(ROWS, 0.0)
    rows["parameters"] = parameter_bytes(parts)
    rows["reference"] = (0 if sharding.offload_parameters else 1) * arch.reference_bytes / sharding.reference
    rows["rollout copy"] = float(arch.copy_bytes) if parts.keeps_copy else 0.0
    rows["optimizer"] = optimizer_bytes(parts)
    rows["reward models"] = float(sum(model.bytes for model in parts.rewards if not model.offload))
    if sharding.gradients_stay:
        rows["gradients"] = kept_gradients(parts)
    if sharding.stage >= 3:
        rows["gradients"] += reduce_buffers(parts)
    if sharding.by_layer and arch.reference_bytes:
        rows["gathered weights"] = float(arch.around * arch.dtype.itemsize)  # no backward pass divides it again
    return rows


def parameter_bytes(parts: Parts) -> float:
    """The policy's weights; FSDP2 leaves small frozen ones whole."""
    arch, sharding = parts.arch, parts.sharding
    if sharding.offload_parameters:
        return 0.0
    whole = arch.outside_bytes if sharding.by_layer else 0
    return whole + (arch.parameter_bytes - whole) / sharding.parameters


def has_masters(parts: Parts) -> bool:
    """Whether the strategy keeps a float32 copy of the weights. ZeRO-3 steps float32 weights themselves."""
    sharding = parts.sharding
    return sharding.master_weights and not (sharding.stage >= 3 and parts.arch.dtype == torch.float32)


def optimizer_bytes(parts: Parts) -> float:
    """States, and float32 master weights where the strategy keeps them."""
    if parts.sharding.offload_optimizer:
        return 0.0
    return optimizer_state(parts) / parts.sharding.optimizer


def optimizer_state(parts: Parts) -> float:
    """The same of all devices together, wherever it is."""
    return parts.arch.trained * (parts.optimizer.state + FLOAT32 * has_masters(parts))


def kept_gradients(parts: Parts) -> float:
    """What of the gradients is there between steps: copies for communication, or the strategy's own partition."""
    sharding = parts.sharding
    if sharding.gradient_copies:
        return float(parts.arch.trained_bytes * sharding.gradient_copies)
    return parts.arch.trained_bytes / sharding.gradients


def reduce_buffers(parts: Parts) -> float:
    """The buckets in which DeepSpeed adds up gradients; stage 3 has one, whatever `overlap_comm` says."""
    sharding = parts.sharding
    return float(
        (1 + (sharding.overlapped and sharding.stage < 3)) * sharding.reduce_bucket * parts.arch.dtype.itemsize
    )


def all_gradients(parts: Parts) -> float:
    """What comes up by the end of an update's backward passes, beyond what stands."""
    arch, sharding = parts.arch, parts.sharding
    return 0.0 if sharding.stage >= 3 else arch.trained_bytes / sharding.gradients


def held_gradients(parts: Parts) -> float:
    """The same of earlier backward passes, while the next is made. With the optimizer on the host, they wait there."""
    return all_gradients(parts) if passes_of_update(parts) > 1 and not parts.sharding.offload_optimizer else 0.0


def replaced_gradients(parts: Parts) -> float:
    """ZeRO-2 holds the sum of its part so far and the new gradients before it adds them up."""
    return held_gradients(parts) if parts.sharding.stage in (1, 2) else 0.0


def passes_of_update(parts: Parts) -> int:
    """Backward passes of one update."""
    work = parts.work
    return work.micro_batches * (1 if parts.sharding.one_pass else 1 + work.cot)


def reducing(parts: Parts) -> float:
    """Taken while gradients are added up over the devices in the backward pass, largest at the largest weight."""
    arch, sharding, size = parts.arch, parts.sharding, parts.arch.dtype.itemsize
    if not arch.layers_have_gradient:
        return 0.0
    if sharding.stage:
        largest = max(min(sharding.reduce_bucket, arch.trained), min(arch.largest, arch.trained))
        flattened = largest * size  # a bucket, or a weight that is larger than one
        return flattened + (reduce_buffers(parts) if sharding.stage < 3 else 0)
    if sharding.by_layer:
        return 2.0 * min(arch.largest_layer, arch.trained) * size  # a layer's whole ones, and where they are sent from
    return 0.0


def copying(parts: Parts) -> float:
    """Taken to gather a bucket of a rollout copy."""
    if not parts.keeps_copy:
        return 0.0
    return float(max(min(BUCKET, parts.arch.trained), parts.arch.largest) * parts.arch.dtype.itemsize)


def gathered(parts: Parts, reference: bool = False) -> float:
    """Divided weights that are whole for the time that they are used, by the policy or by its reference."""
    arch, sharding = parts.arch, parts.sharding
    if sharding.whole:
        return 0.0
    if sharding.by_layer:
        around = arch.around if parts.reads_policy or not (reference and arch.reference_bytes) else 0
        live = around + 2 * FSDP_LIVE_LAYERS * arch.largest_layer  # as they arrive, and as they are used
    elif sharding.live_parameters is None:
        live = FSDP_LIVE_LAYERS * arch.largest_layer + arch.text_matmul.weights
    else:
        live = sharding.live_parameters
    most = arch.reference_bytes if reference and arch.reference_bytes else arch.parameter_bytes
    return float(min(live * arch.dtype.itemsize, most))


def gathered_for_rollout(parts: Parts) -> float:
    """The same while sampling: nothing where a copy is read, which is counted on its own."""
    return 0.0 if parts.keeps_copy else gathered(parts)


def update_bytes(parts: Parts) -> float:
    """What is taken within an optimizer's step, gradients apart.

    DeepSpeed joins its part of the gradients into one tensor, makes it float32, and before that takes the norm of each
    gradient in float64.
    """
    arch, sharding, optimizer = parts.arch, parts.sharding, parts.optimizer
    if sharding.offload_optimizer:
        return 0.0
    own = arch.trained / sharding.optimizer
    scratch = optimizer.scratch * min(own, max(optimizer.bucket, arch.largest / sharding.optimizer))
    if not sharding.stage:
        summed = SUM_BUCKET + arch.largest if sharding.devices > 1 and not sharding.by_layer else 0
        return max(scratch, min(summed, arch.trained) * arch.dtype.itemsize)
    joined = own * arch.dtype.itemsize
    widened = own * FLOAT32 if arch.dtype != torch.float32 else 0
    norm = FLOAT64 * min(arch.largest / (sharding.optimizer if sharding.stage >= 3 else 1), own)
    return max(joined + widened, widened + scratch, norm)


def preparing_bytes(parts: Parts) -> float:
    """Taken while a strategy sets itself up, beyond what stands: ZeRO makes its float32 copies by way of another, and
    stages 1 and 2 join the trained weights into one tensor before the loaded ones go."""
    arch, sharding = parts.arch, parts.sharding
    own = arch.trained / sharding.optimizer
    if sharding.stage >= 3:
        return 0.0 if sharding.offload_optimizer else own * FLOAT32
    if sharding.stage:
        return max(float(arch.trained_bytes), own * FLOAT32)
    return 0.0


def optimizer_dtype(arch: Architecture, sharding: Sharding) -> torch.dtype:
    """Type of the parameters that the optimizer works on."""
    return torch.float32 if sharding.master_weights else arch.dtype
