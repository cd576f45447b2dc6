"""Linear layers on a CPU with weights in oneDNN's own blocks, while few rows are fed at a time.

A product of few rows reads a weight once and computes little: laid out in blocks it takes half the time. The layout
costs about as much as a few products, so it is made once a rollout, after which the weights may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 32  # of more, the plain layout is as fast
LEAST = 2**18  # elements of a weight: smaller ones stay in the cache whatever their layout
MOST_BYTES = 2**30  # of all packed weights together, which are a second copy
TURNS = 16  # a loop of fewer does not earn the packing back


@contextmanager
def packed_linears(parts: Sequence[nn.Module], rows: int, turns: int) -> Iterator[None]:
    """Inside, large float32 linear layers on a CPU run on packed copies of their weights; results differ by rounding.

    Args:
        parts: Modules that are run without gradient, and whose weights do not change inside.
        rows: Fed at a time.
        turns: How often they will be run, about.
    """
    chosen: list[nn.Linear] = []
    if rows <= ROWS and turns >= TURNS and _available():
        chosen = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear) and _gains(m)]
    if sum(m.weight.nbytes for m in chosen) > MOST_BYTES:
        chosen = []
    for module in chosen:
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS)
        module.forward = partial(_linear, module, weight)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in chosen:
            del module.forward  # the class's own is seen again


def _gains(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks:  # they bring its weight, which ZeRO gathers when looked at
        return False
    weight = module.weight
    plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() >= LEAST


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _linear(module: nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > ROWS:
        return F.linear(x, module.weight, module.bias)
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, module.bias, "none", [], "")
    return out.view(*x.shape[:-1], -1)
