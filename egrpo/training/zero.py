"""The engine of DeepSpeed ZeRO: its own gradient accumulation, clipping and norm; stage 3 also divides the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from egrpo import distributed
from egrpo.policy.rollout_copy import without_hooks
from egrpo.training.checks import check_recomputed
from egrpo.training.engines import Engine


class ZeroEngine(Engine):
    """Gradients are averaged over ranks in every backward pass, and applied by DeepSpeed.

    Plans and images share a backward pass: with the optimizer on the host, DeepSpeed hands over what has gathered up of
    a weight only when the last pass has a gradient for it, and the text head has none from images.
    """

    passes_by_segment = False

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.strategy: DeepSpeedStrategy = module.trainer.strategy
        self.loss_scale = float(distributed.world_size())
        self._kept_alive: Any = None
        if self.divided:
            self.lockstep = distributed.Ranks()

    @property
    def divided(self) -> bool:
        """Whether each rank holds a part of the weights."""
        return self.strategy.zero_stage_3

    @contextmanager
    def building(self) -> Iterator[None]:
        """transformers divides what it loads, tensor by tensor, as long as its own note of the configuration lives."""
        config: Any = self.strategy.config
        config["gradient_clipping"] = self.module.objective.max_grad_norm
        if self.divided:
            from transformers.integrations import HfDeepSpeedConfig

            self._kept_alive = HfDeepSpeedConfig(config)
        yield

    def divide(self, policy: Any, reference: Any) -> None:
        """Weights are divided already, while they are loaded.

        Raises:
            UserError: frozen weights lie among layers that the backward pass computes again.
        """
        model = policy.backbone.language_model
        if self.divided and model.is_gradient_checkpointing:
            check_recomputed(all(p.requires_grad for p in model.parameters()))
        if self.divided:
            self.keep_rollout_copy(policy)

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[Tensor]]:
        """As `Engine.gathered`, once DeepSpeed has released what it fetched ahead for the modules that it expects next:
        a weight in flight can neither be read nor divided again."""
        import deepspeed

        optimizer: Any = self.module.trainer.model.optimizer
        getattr(optimizer, "parameter_offload", optimizer).partition_all_parameters()
        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield [p.data for p in parameters]

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Frozen heads stay gathered: they run in chunks that are computed again in the backward pass, where torch
        keeps frozen weights by reference and would find them released."""
        import deepspeed

        own = self.module.policy.backbone
        heads = nn.ModuleList(h for h in (own.lm_head, own.generation_head) if not any_trained(h) and self.divided)
        with deepspeed.zero.GatheredParameters(list(heads.parameters())), without_hooks(heads):
            yield

    def next_pass(self, last: bool) -> None:
        engine: Any = self.module.trainer.model
        # DeepSpeed overwrites the gradients of an earlier backward pass unless it is told, as its forward does, that a
        # new one begins. All our passes lie within one forward, so without this only the last micro-batch would count.
        engine.optimizer.clear_backward_seen_flag()
        engine.set_gradient_accumulation_boundary(last)

    def apply(self, max_norm: float) -> Tensor | None:
        """As `Engine.apply`; `max_norm` is in DeepSpeed's configuration already."""
        optimizer: Any = self.module.optimizers()
        optimizer.step()
        engine: Any = self.module.trainer.model
        if not engine.was_step_applied():
            return None
        norm = engine.get_global_grad_norm()
        return norm.detach() if isinstance(norm, Tensor) else torch.tensor(float(norm))


def any_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
