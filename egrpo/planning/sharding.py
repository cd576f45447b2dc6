"""What a Lightning strategy leaves on each device, from its class and its arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

from egrpo.base.errors import UserError

MAX_LIVE_PARAMETERS = 10**9  # DeepSpeed's default of stage3_max_live_parameters and of stage3_max_reuse_distance
REDUCE_BUCKET = 5 * 10**8  # DeepSpeed's default of reduce_bucket_size; Lightning's own is smaller
FSDP_SHARDS = {  # what torch's ShardingStrategy of that name cuts: parameters, gradients and optimizer
    "FULL_SHARD": (True, True),
    "SHARD_GRAD_OP": (False, True),
    "NO_SHARD": (False, False),
}


@dataclass(frozen=True)
class Sharding:
    """By how many devices each part is divided, and what waits on the host instead.

    Args:
        parameters, gradients, optimizer, reference: Divisors, 1 = a whole copy on every device.
        offload_parameters, offload_optimizer: The part (for the optimizer its step too) is on the host.
        stage: Of DeepSpeed ZeRO, 0 = none.
        by_layer: FSDP2, as `egrpo.training.fsdp` divides a policy: layers one by one, the weights around them together,
            and what is small and frozen not at all.
        master_weights: The optimizer works on float32 copies of the weights, with float32 states.
        gradient_copies: Copies of the gradients that are kept for communication.
        gradients_stay: Their memory is kept between steps.
        live_parameters: Most parameters gathered at one time while scoring; None = two layers.
        reduce_bucket: Elements of gradients that DeepSpeed adds up over the ranks at once.
        overlapped: Two such buckets take turns.
        one_pass: Plans and images share a backward pass: autograd adds up what a weight gets from either, in full size
            however weights are divided, before it goes into its gradient.
        devices: All devices that take part.
        says: One line for the report.
    """

    parameters: int = 1
    gradients: int = 1
    optimizer: int = 1
    reference: int = 1
    offload_parameters: bool = False
    offload_optimizer: bool = False
    stage: int = 0
    by_layer: bool = False
    master_weights: bool = False
    gradient_copies: int = 0
    gradients_stay: bool = False
    live_parameters: int | None = None
    reduce_bucket: int = 0
    overlapped: bool = False
    one_pass: bool = False
    devices: int = 1
    says: str = "one device holds everything"

    @property
    def whole(self) -> bool:
        """Every device has all weights, all the time."""
        return self.stage < 3 and not self.by_layer and self.parameters == 1 and not self.offload_parameters

    @property
    def keeps_copy(self) -> bool:
        """Whether an engine of the training step divides the weights, and can keep a whole copy for rollouts."""
        return self.stage >= 3 or self.by_layer


def read_sharding(strategy: Any, devices: int) -> Sharding:
    """From the trainer's `strategy` as it is configured: a name that Lightning knows, or a mapping with `_target_`.

    Raises:
        UserError: Lightning has no strategy of that name, or the plan does not know how it shards.
    """
    kind, arguments = strategy_class(strategy, devices)
    defaults = {
        name: parameter.default
        for parent in reversed(kind.__mro__[:-1])
        for name, parameter in inspect.signature(parent).parameters.items()
        if parameter.default is not parameter.empty
    }
    values = {**defaults, **arguments}
    if issubclass(kind, DeepSpeedStrategy):
        return _deepspeed(values, devices)
    if issubclass(kind, FSDPStrategy):
        return _fsdp(values, devices)
    if issubclass(kind, ModelParallelStrategy):
        says = f"FSDP2: layers cut into {devices}"
        return Sharding(devices, devices, devices, devices, by_layer=True, devices=devices, says=says)
    if issubclass(kind, DDPStrategy):
        copies = 0 if values.get("gradient_as_bucket_view") else 1
        says = f"{devices} devices, each with a whole copy" + (", gradients also in DDP's buckets" if copies else "")
        return Sharding(gradient_copies=copies, gradients_stay=True, devices=devices, says=says)
    if issubclass(kind, SingleDeviceStrategy):
        return Sharding()
    raise UserError(f"trainer.strategy: a plan does not know how {kind.__name__} shards; use DDP, DeepSpeed or FSDP")


def strategy_class(strategy: Any, devices: int) -> tuple[type, dict[str, Any]]:
    """The class that Lightning would build and the arguments that it is given."""
    if isinstance(strategy, Mapping):
        arguments = {str(key): value for key, value in strategy.items() if not str(key).startswith("_")}
        return get_class(strategy["_target_"]), arguments
    name = ("ddp" if devices > 1 else "single_device") if strategy in (None, "auto") else str(strategy)
    if name not in StrategyRegistry:
        known = ", ".join(["auto", *StrategyRegistry.available_strategies()])
        raise UserError(f"trainer.strategy={name}: Lightning has no such strategy; it has {known}")
    return StrategyRegistry[name]["strategy"], dict(StrategyRegistry[name]["init_params"])


def _deepspeed(values: Mapping[str, Any], devices: int) -> Sharding:
    zero = _deepspeed_config(values.get("config")).get("zero_optimization")
    if zero is None:
        zero = {"stage": values.get("stage", 2) if values.get("zero_optimization", True) else 0}
        zero |= {f"offload_{part}": {"device": "cpu"} for part in ("optimizer", "param") if values.get(_FLAG[part])}
        zero |= {name: values[name] for name in ("reduce_bucket_size", "overlap_comm") if name in values}
    zero = {**zero, **(values.get("zero") or {})}
    stage = int(zero.get("stage", 0))

    def offloaded(part: str) -> bool:
        return (zero.get(f"offload_{part}") or {}).get("device", "none") != "none"

    return Sharding(
        parameters=devices if stage >= 3 else 1,
        gradients=devices if stage >= 2 else 1,
        optimizer=devices if stage >= 1 else 1,
        reference=devices if stage >= 3 else 1,
        offload_parameters=stage >= 3 and offloaded("param"),
        offload_optimizer=offloaded("optimizer"),
        stage=stage,
        master_weights=True,
        gradients_stay=stage >= 3 and not offloaded("optimizer"),
        reduce_bucket=int(float(zero.get("reduce_bucket_size", REDUCE_BUCKET))),
        overlapped=bool(zero.get("overlap_comm", stage >= 3)),
        live_parameters=max(
            int(float(zero.get(f"stage3_max_{name}", MAX_LIVE_PARAMETERS)))
            for name in ("live_parameters", "reuse_distance")
        ),
        one_pass=True,
        devices=devices,
        says=f"DeepSpeed ZeRO stage {stage} over {devices} devices, float32 master weights and states"
        + (", optimizer on the host" if offloaded("optimizer") else "")
        + (", weights on the host" if stage >= 3 and offloaded("param") else ""),
    )


_FLAG = {"optimizer": "offload_optimizer", "param": "offload_parameters"}  # Lightning's names of them


def _deepspeed_config(config: Any) -> dict[str, Any]:
    if config is None or isinstance(config, Mapping):
        return dict(config or {})
    try:
        return dict(json.loads(Path(config).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"trainer.strategy: DeepSpeed's config {config} cannot be read: {error}") from error


def _fsdp(values: Mapping[str, Any], devices: int) -> Sharding:
    name = str(values.get("sharding_strategy", "FULL_SHARD")).rpartition(".")[2]
    if name not in FSDP_SHARDS:
        raise UserError(f"trainer.strategy.sharding_strategy={name}: a plan knows {', '.join(FSDP_SHARDS)}")
    weights, rest = FSDP_SHARDS[name]
    offload = bool(values.get("cpu_offload"))
    return Sharding(
        parameters=devices if weights else 1,
        gradients=devices if rest else 1,
        optimizer=devices if rest else 1,
        reference=devices if weights else 1,
        offload_parameters=offload,
        offload_optimizer=offload,
        devices=devices,
        says=f"FSDP {name} over {devices} devices" + (", on the host between uses" if offload else ""),
    )
