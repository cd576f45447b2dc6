"""A whole copy of the weights that rollouts read, for strategies that divide the policy among ranks.

It stays at the same addresses for the whole run, so that CUDA graphs and compiled layers survive from one rollout to
the next, and it is refreshed a few parameters at a time, so that no rank gathers the policy a second time.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from egrpo.policy.backbone import Backbone

BUCKET = 2**28  # elements gathered at once

# Inside, the given parameters are whole tensors, yielded in the same order. All ranks must enter it together.
Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[Sequence[Tensor]]]


class RolloutCopy:
    """The modules that sampling and decoding run, with whole weights of their own.

    It is no `nn.Module`: a policy that holds one neither trains, nor saves, nor divides it.

    Args:
        model: The policy's model, before a strategy has put hooks on it or FSDP has divided it. Its weights are not
            read here; they may be on "meta" or divided by ZeRO-3.
    """

    def __init__(self, model: Any) -> None:
        self.model = _without_storage(model)
        self._parts = nn.ModuleList([*Backbone.of(self.model).modules().values(), self.model.model.vqmodel])
        needed = {id(p) for p in self._parts.parameters()}
        self._names = [name for name, p in self.model.named_parameters() if id(p) in needed]  # tied weights have one
        self._trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self._stale = set(self._names)
        self._has_storage = False

    def mark_stale(self) -> None:
        """To be called when the trainable weights may have changed; all others never do."""
        self._stale |= self._trained & set(self._names)

    @torch.inference_mode(False)  # tensors made in inference mode could not be changed by the next training step
    @torch.no_grad()
    def refresh(self, source: nn.Module, gather: Gather, device: torch.device) -> None:
        """Copies the weights that have changed since the last time. All ranks must call it together.

        Args:
            source: The policy's model.
            gather: Makes divided parameters whole.
            device: Where the copy is made, the first time.
        """
        if not self._has_storage:
            _give_storage(self._parts, device)
            self._has_storage = True
        theirs, ours = dict(source.named_parameters()), dict(self.model.named_parameters())
        stale = [name for name in self._names if name in self._stale]
        for names in _buckets(stale, ours):
            with gather([theirs[name] for name in names]) as whole:
                for name, value in zip(names, whole, strict=True):
                    ours[name].copy_(value)
        self._stale.clear()


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Takes forward hooks off every submodule, then puts them back."""
    kept = [(part, part._forward_pre_hooks, part._forward_hooks) for part in module.modules()]
    for part, _, _ in kept:
        part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, before, after in kept:
            part._forward_pre_hooks, part._forward_hooks = before, after


def _without_storage(model: nn.Module) -> Any:
    """A copy in evaluation mode whose parameters are on "meta", frozen, in their whole shapes; buffers are copied."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        shape = getattr(p, "ds_shape", p.shape)  # DeepSpeed's name for the whole shape
        memo[id(p)] = nn.Parameter(torch.empty(shape, dtype=p.dtype, device="meta"), requires_grad=False)
    with without_hooks(model):
        return copy.deepcopy(model, memo).eval()


def _give_storage(module: nn.Module, device: torch.device) -> None:
    """Moves buffers to `device` and replaces parameters on "meta"; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            if id(p) not in made:
                made[id(p)] = nn.Parameter(torch.empty_like(p, device=device), requires_grad=False)
            setattr(part, name, made[id(p)])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


def _buckets(names: list[str], parameters: dict[str, nn.Parameter]) -> list[list[str]]:
    """In order, at most `BUCKET` elements together, or one parameter alone."""
    buckets: list[list[str]] = []
    filled = 0
    for name in names:
        size = parameters[name].numel()
        if not buckets or filled + size > BUCKET:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets
