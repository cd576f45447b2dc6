"""The engine of FSDP2: weights, gradients and optimizer are divided; layers are gathered as they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from egrpo import distributed
from egrpo.policy.deferred import deferring, fill, weight_files
from egrpo.training.engines import Engine
from egrpo.types import TokenScores

# FSDP finds the tensors of a module's output, from which the backward pass will come, through pytree.
_pytree.register_dataclass(TokenScores)


class FSDPEngine(Engine):
    """Policy and reference are divided layer by layer; what lies around the layers is gathered for a whole forward.

    They are built without weights, and each rank reads its own part of the checkpoint.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.lockstep = distributed.Ranks()
        self.loss_scale = float(distributed.world_size())  # FSDP averages gradients over ranks

    def building(self) -> Any:
        return deferring()

    def divide(self, policy: Any, reference: Any) -> None:
        mesh = self.module.device_mesh["data_parallel"]
        keys, files = weight_keys(policy), weight_files(policy.model.config._name_or_path)
        self.keep_rollout_copy(policy)
        for part in (policy, reference):
            if not isinstance(part, nn.Module):
                continue  # the policy with its adapter off
            models: list[Any] = [m for m in part.modules() if hasattr(m, "embed_tokens") and hasattr(m, "layers")]
            for layer in (layer for model in models for layer in model.layers):
                fully_shard(layer, mesh=mesh)
            fully_shard(part, mesh=mesh, ignored_params=_small_and_frozen(policy) if part is policy else None)
            fill(part, keys, files, self.module.device)
            root: Any = part
            root._get_fsdp_state()._lazy_init()  # the root first: rollouts gather before the first forward

    @contextmanager
    def root_weights(self) -> Iterator[None]:
        policy: Any = self.module.policy
        policy.unshard()  # what lies around the layers, which gather themselves
        try:
            yield
        finally:
            policy.reshard()

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[Tensor]]:
        yield [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]

    def accumulating(self) -> Any:
        return nullcontext()

    def apply(self, max_norm: float) -> Tensor | None:
        """As `Engine.apply`, on gradients of which every rank has its part."""
        optimizer: Any = self.module.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        divided: Any = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        norm: Tensor = divided.full_tensor() if hasattr(divided, "full_tensor") else divided
        if bool(norm.isfinite()):
            optimizer.step()
            optimizer.zero_grad()
        return norm


def weight_keys(policy: Any) -> dict[str, str]:
    """Names of parameters, in a policy and in its reference, -> names of the weights in a checkpoint."""
    paths = {id(part): path for path, part in policy.model.named_modules()}
    copies = {f"copies.{name}": paths[id(part)] for name, part in policy.backbone.modules().items()}
    plain = {name: name.replace(".base_layer.", ".") for name, _ in policy.model.named_parameters()}
    own = {f"model.{name}": key for name, key in plain.items()}
    for copy, path in copies.items():
        start = f"{path}."
        own |= {f"{copy}.{name[len(start) :]}": key for name, key in plain.items() if name.startswith(start)}
    return own


def _small_and_frozen(policy: Any) -> set[nn.Parameter]:
    """Frozen weights outside the language model and its head (image codes in and out, VQ model): whole on every rank,
    as decoding runs them outside any forward that would gather them."""
    own = policy.backbone
    large = {id(p) for part in (own.language_model, own.lm_head) for p in part.parameters()}
    return {p for p in policy.parameters() if not p.requires_grad and id(p) not in large}
