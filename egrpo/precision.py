"""Types of numbers that a strategy or a half precision must not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn


@contextmanager
def float32_default() -> Iterator[None]:
    """Within, tensors of no stated type are float32: Lightning's half precisions change torch's default within a step,
    which neither rewards nor transformers expect."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def keep_buffer_types(model: nn.Module) -> None:
    """Lets `model.to(dtype)` and its like leave the type of buffers that are no part of a checkpoint.

    Lightning and DeepSpeed convert a whole model to bfloat16, rotary frequencies too, which would shift the angle of a
    token at position 1,000 by more than a radian: the policy in training would not be the one that is exported.
    """
    for module in model.modules():
        if module._non_persistent_buffers_set:
            module._apply = MethodType(_apply_keeping, module)  # type: ignore[method-assign]


def _apply_keeping(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    buffers = {name: self._buffers.get(name) for name in self._non_persistent_buffers_set}
    type(self)._apply(self, fn, recurse)
    for name, buffer in buffers.items():
        if buffer is not None and buffer.is_floating_point() and not buffer.is_meta:
            self._buffers[name] = buffer.to(self._buffers[name].device)  # type: ignore[union-attr]
    return self
