"""LoRA adapters, and the two frozen references that KL is measured against."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from egrpo.base.errors import UserError
from egrpo.policy.backbone import Backbone, evaluating
from egrpo.policy.janus import JanusPolicy
from egrpo.policy.scoring import score_rollout
from egrpo.precision import keep_buffer_types
from egrpo.types import Rollout, TokenScores

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(
    policy: JanusPolicy,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: Sequence[str] = LINEAR_LAYERS,
) -> JanusPolicy:
    """Puts LoRA (Hu et al. 2021) on linear layers of the language model and freezes all else.

    Args:
        policy: Changed in place.
        r: Rank.
        alpha: Scale, the update is multiplied by alpha / r.
        dropout: On the adapter's input, in training mode.
        target_modules: Ends of the names of layers.

    Returns:
        The same policy.

    Raises:
        UserError: No layer has such a name (by peft).
    """
    policy.requires_grad_(False)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(target_modules))
    state = torch.get_rng_state()
    inject_adapter_in_model(config, policy.model.model.language_model)
    torch.set_rng_state(state)
    draw_adapters(policy.model)
    return policy


def draw_adapters(model: nn.Module) -> None:
    """Gives LoRA weights their initial values, drawn on the CPU whatever their device, so that every device and
    strategy starts alike. Also where peft could not draw them: on "meta", which become CPU tensors, and in weights that
    ZeRO-3 divides as soon as they are made (the halves that must be 0 would keep a linear layer's random values)."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name in layer.lora_A:
                for half in (layer.lora_A[name], layer.lora_B[name]):
                    if half.weight.is_meta:
                        half.to_empty(device="cpu")
                weights: list[Any] = [layer.lora_A[name].weight, layer.lora_B[name].weight]
                with _whole(weights):
                    kept = [weight.data for weight in weights]
                    for weight in weights:
                        weight.data = torch.empty_like(weight.data, device="cpu")
                    layer.reset_lora_parameters(name, True)
                    for weight, there in zip(weights, kept, strict=True):
                        weight.data = there.copy_(weight.data)


def _whole(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Inside, parameters that ZeRO-3 divides can be changed; rank 0's values count."""
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


class FrozenReference(nn.Module):
    """The policy as it was when this was built: trainable modules are copied, frozen ones shared by reference.

    Neither the vision tower nor the VQ model is kept.

    Args:
        policy: Gives the frozen modules and the settings of scoring.
        model: Takes the trainable modules from this model instead of copying the policy's (where its parameters are
            partitioned they cannot be copied); it is frozen in place.
        embeddings: Which input embeddings text tokens have: the reference's "own", or those of the "policy" at the time
            of scoring, as in the released code, which hands the policy's embeddings to the reference's layers. Image
            tokens have frozen ones either way.

    Raises:
        UserError: `embeddings` is neither.
    """

    def __init__(self, policy: JanusPolicy, model: Any = None, embeddings: str = "own") -> None:
        super().__init__()
        check_embeddings(embeddings)
        own = policy.backbone.modules()
        trained = {name: part for name, part in own.items() if any(p.requires_grad for p in part.parameters())}
        if model is None and policy.load_again and any(hasattr(p, "ds_id") for p in policy.parameters()):
            model = policy.load_again()  # divided among ranks by ZeRO while it was loaded
        if model is not None:
            keep_buffer_types(model)  # copies of the policy's modules do so already
        # One copy of all at once keeps tied weights tied.
        source = copy.deepcopy(trained) if model is None else {n: Backbone.of(model).modules()[n] for n in trained}
        self.copies = nn.ModuleDict(source).requires_grad_(False).eval()
        # Not registered: shared modules are the policy's to move and to save.
        self._shared = {name: part for name, part in own.items() if name not in trained}
        self._settings = policy.scoring
        self._policy = (policy,) if embeddings == "policy" else ()

    @property
    def reads_policy(self) -> bool:
        """Whether modules of the policy run when it scores; where those are divided, they must be gathered."""
        return bool(self._policy)

    @torch.no_grad()
    def score(self, rollout: Rollout, *, temperature: float = 1.0, entropy: bool = True) -> TokenScores:
        """As `JanusPolicy.score`, without gradient."""
        backbone = Backbone(**{**self._shared, **dict(self.copies.items())})
        for policy in self._policy:  # its embeddings at this step
            backbone = replace(backbone, text_embeddings=policy.backbone.language_model.get_input_embeddings())
        return score_rollout(backbone, rollout, temperature=temperature, entropy=entropy, **self._settings)

    forward = score

    def train(self, mode: bool = True) -> FrozenReference:
        """Stays in evaluation mode."""
        return super().train(False)


def check_embeddings(embeddings: str) -> None:
    """Raises UserError unless it names embeddings that a reference can read."""
    if embeddings not in ("own", "policy"):
        raise UserError(f"reference.embeddings={embeddings}: choose own, or policy as in the released code")


class AdapterOffReference:
    """The policy with its adapter off: the base model, without a second copy in memory.

    `embeddings` is as in `FrozenReference` and changes nothing: an adapter leaves the policy's embeddings as they were.
    """

    reads_policy = False  # its own forward gathers what it needs

    def __init__(self, policy: JanusPolicy, embeddings: str = "own") -> None:
        check_embeddings(embeddings)
        if not any(True for _ in _adapters(policy)):
            raise UserError("the policy has no adapter to switch off: use FrozenReference")
        self.policy = policy

    @torch.no_grad()
    def score(self, rollout: Rollout, *, temperature: float = 1.0, entropy: bool = True) -> TokenScores:
        """As `JanusPolicy.score`, of the base model and without gradient."""
        with evaluating(self.policy), adapters_off(self.policy):
            return self.policy(rollout, temperature=temperature, entropy=entropy)

    __call__ = score


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Adapters of `module` switched off, then on again."""
    layers = list(_adapters(module))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _adapters(module: nn.Module) -> Iterator[BaseTunerLayer]:
    return (part for part in module.modules() if isinstance(part, BaseTunerLayer))
