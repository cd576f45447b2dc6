"""What an optimizer keeps and takes, found by letting it take one step on a small matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from egrpo.planning.measuring import peak_bytes
from egrpo.training.optimizers import BUCKET, MasterAdamW

SIDE = 64


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes a parameter."""

    state: float  # kept between steps
    scratch: float  # taken within a step: all parameters at once where torch's foreach form is used
    bucket: float = math.inf  # parameters stepped at once, or one larger parameter


def optimizer_cost(make: Callable[..., torch.optim.Optimizer], dtype: torch.dtype, foreach: bool) -> OptimizerCost:
    """Of parameters of type `dtype`; `foreach`: where the optimizer may choose, as on an accelerator.

    Scalars, such as the count of steps, are left out.
    """
    weight = torch.nn.Parameter(torch.zeros(SIDE, SIDE, dtype=dtype))
    optimizer = make([weight])
    for group in optimizer.param_groups:
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = foreach
    weight.grad = torch.ones_like(weight)
    optimizer.step()  # makes the states
    states = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    kept = sum(value.numel() * value.dtype.itemsize for value in states if value.numel() > 1)
    in_buckets = isinstance(optimizer, MasterAdamW) and dtype != torch.float32
    return OptimizerCost(kept / SIDE**2, peak_bytes(optimizer.step) // SIDE**2, BUCKET if in_buckets else math.inf)
