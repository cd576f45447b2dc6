"""What a strategy changes about a training step: where weights are, and how gradients are added up and applied.

`engine_for` picks by the class of the trainer's strategy; every engine gives the gradients of one process that holds
the whole batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from egrpo import distributed
from egrpo.policy.capture import EAGER_COST
from egrpo.policy.lockstep import ALONE, Lockstep
from egrpo.policy.rollout_copy import RolloutCopy

log = logging.getLogger(__name__)


class Engine:
    """Every process has the whole weights: one process, or several (DDP).

    Gradients of DDP's ranks are added up here, once an update, instead of by its hooks in every backward pass: a weight
    that a rank's samples do not use is then no fault, and micro-batches cost no communication.

    Args:
        module: The LightningModule; `module.policy` is there when anything but `building` is called.
    """

    lockstep: Lockstep = ALONE  # of scoring
    passes_by_segment = True  # whether plans and images may have backward passes of their own
    lowered_scale = False  # whether the last `apply` took no step because 16-mixed's loss scale was too high
    loss_scale = 1.0  # what losses are multiplied by before the backward pass

    def __init__(self, module: Any) -> None:
        self.module = module

    def building(self) -> AbstractContextManager[Any]:
        """In which policy and reference are built."""
        return nullcontext()

    def divide(self, policy: Any, reference: Any) -> None:
        """Divides freshly built parts among the ranks, where the strategy has not done so while they were built."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Around sampling: with the whole weights, or (`rollout.gather=shard`) in step with the other ranks."""
        policy = self.module.policy
        if policy.rollout_copy is not None:
            policy.rollout_copy.refresh(policy.model, self.gathered, self.module.trainer.strategy.root_device)
        if policy.rollout_copy is not None or self.lockstep is ALONE:
            yield
            return
        policy.drawing = self.lockstep
        try:
            with self.root_weights():
                yield
        finally:
            policy.drawing = ALONE

    def keep_rollout_copy(self, policy: Any) -> None:
        """Gives the policy whole weights to sample from, unless `rollout.gather=shard` asks for layers gathered one by
        one. To be called before the policy is divided or gets hooks."""
        if self.module.rollout_settings.gather == "full":
            policy.rollout_copy = RolloutCopy(policy.model)
        elif self.module.trainer.strategy.root_device.type == "cuda" and distributed.rank() == 0:
            log.warning("sampling runs eagerly under rollout.gather=shard (perf/decoding=0): %s", EAGER_COST)

    @property
    def fast_decoding(self) -> bool:
        """Whether tokens were drawn in the fast way of this device: on a GPU by CUDA graphs."""
        policy = self.module.policy
        in_step = self.lockstep is not ALONE and policy.rollout_copy is None
        return not (policy.steps.fell_back or (in_step and policy.device.type == "cuda"))

    def weights_changed(self) -> None:
        """After the weights were loaded or stepped."""
        policy = self.module.policy
        if policy is not None and policy.rollout_copy is not None:
            policy.rollout_copy.mark_stale()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Sequence[Tensor]]:
        """Inside, these parameters are whole; see `egrpo.policy.rollout_copy.Gather`."""
        return nullcontext(parameters)

    def root_weights(self) -> AbstractContextManager[Any]:
        """Inside, the policy's modules can be run without its own forward, in step with the other ranks."""
        return nullcontext()

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Around all forward and backward passes of one update."""
        wrapped = getattr(self.module._trainer, "model", None)
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext():
            yield

    def next_pass(self, last: bool) -> None:
        """Before the forward pass of each micro-batch; `last` of its update."""

    def apply(self, max_norm: float) -> Tensor | None:
        """Clips and applies the gradient, and clears it.

        Returns:
            Its norm before clipping, 0-d; None or a number that is not finite where no step was taken.
        """
        optimizer: Any = self.module.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        add_gradients(parameters)
        scaler = getattr(getattr(self.module._trainer, "precision_plugin", None), "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()  # 16-mixed: gradients are those of the loss times this
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm * scale) / scale
        self.lowered_scale = False
        if bool(norm.isfinite()):
            optimizer.step()
            optimizer.zero_grad()
        elif scaler is not None and scale > 1:  # the scale's overflow, perhaps, not the run's
            scaler.unscale_(optimizer.optimizer)
            scaler.update()
            optimizer.zero_grad()
            self.lowered_scale = True
        return norm


def add_gradients(parameters: list[nn.Parameter]) -> None:
    """Adds up gradients over ranks; one that no rank has stays absent, as optimizers tell it from 0."""
    if distributed.world_size() == 1:
        return
    some = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    distributed.sum_in_place([some])
    used = [p for p, count in zip(parameters, some.tolist(), strict=True) if count]
    for p in used:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    distributed.sum_in_place([p.grad for p in used if p.grad is not None])


def engine_for(module: LightningModule) -> Engine:
    """The engine of the strategy that the module's trainer has; without a trainer, that of one process."""
    from egrpo.training.fsdp import FSDPEngine
    from egrpo.training.zero import ZeroEngine

    strategy = None if module._trainer is None else module.trainer.strategy
    for kind, engine in ((DeepSpeedStrategy, ZeroEngine), (ModelParallelStrategy, FSDPEngine)):
        if isinstance(strategy, kind):
            return engine(module)
    return Engine(module)
