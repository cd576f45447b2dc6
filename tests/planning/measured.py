"""Real steps of real policies on the CPU, measured, beside the plans of the same runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import JanusConfig, JanusForConditionalGeneration

import egrpo.policy.rollout as drawing
from egrpo.algorithm import policy_loss
from egrpo.paths import resolve
from egrpo.planning.measuring import LiveBytes
from egrpo.planning.workload import Lengths
from egrpo.policy import JanusPolicy, load_janus, packed
from egrpo.policy.decoding import CachedDecoder
from egrpo.policy.loop import Loop
from egrpo.training.micro_batches import columns_of
from egrpo.types import Rollout

SHAPES = "package:egrpo/shapes/assets/janus"


def random_janus(folder: Path, *, text: dict[str, Any], codes: int, side: int) -> None:
    """Writes the config.json of a Janus with `side` x `side` image tokens of 8 x 8 pixels."""
    width = text["hidden_size"]
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # as the shapes world's tokenizer has them
    JanusConfig(
        text_config={"model_type": "llama", "tie_word_embeddings": False, **special, **text},
        vision_config={
            **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": width},
            **{"image_size": 8 * side, "patch_size": 8, "num_image_tokens": side**2},
        },
        vq_config={
            **{"num_embeddings": codes, "base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1},
            **{"latent_channels": 64, "embed_dim": 8, "projection_dim": width, "image_token_embed_dim": width},
        },
        tie_word_embeddings=False,
    ).save_pretrained(folder)


def build_policy(cfg: DictConfig) -> JanusPolicy:
    """The run's policy; with random weights where its folder holds a config.json alone."""
    folder = resolve(cfg.model.path)
    if list(folder.glob("*.safetensors")):
        return instantiate(cfg.model, _convert_="object")()
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(JanusConfig.from_pretrained(folder)).to(getattr(torch, cfg.model.dtype))
    settings = {k: v for k, v in cfg.model.items() if not k.startswith("_")}
    for key in ("path", "dtype", "attn_implementation", "templates", "adapter"):
        settings.pop(key)
    policy = JanusPolicy(model, load_janus(SHAPES)[1], dict(cfg.model.templates), **settings)
    if cfg.model.adapter is not None:
        instantiate(cfg.model.adapter, _convert_="object")(policy)
    return policy


@dataclass
class Measured:
    """What a step took: bytes of tensors and caches, peaks of phases, operations."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    caches: list[int] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)  # of a segment, alive between its scoring and its backward pass
    saved: dict[str, int] = field(default_factory=dict)  # of that, storages that autograd saved
    largest: int = 0  # allocation while scoring without gradient
    flops: dict[str, int] = field(default_factory=dict)
    lengths: Lengths = field(default_factory=lambda: Lengths(0, 0, 0, 0))  # of the rollout
    scored: Lengths = field(default_factory=lambda: Lengths(0, 0, 0, 0))  # of the micro-batch
    images: int = 0
    image_tokens: int = 0
    plan_tokens: int = 0


def measure_step(cfg: DictConfig, prompts: list[str]) -> Measured:
    """Rollout, scoring and backward of the first micro-batch, optimizer step."""
    policy = build_policy(cfg)
    reference: Any = instantiate(cfg.reference, _convert_="object")(policy)
    policy.train()
    found = Measured()
    rollout = _rollout(cfg, policy, prompts, found)
    trained = [p for p in policy.parameters() if p.requires_grad]
    for p in trained:  # as after the first micro-batch
        p.grad = torch.zeros_like(p)
    _score(policy, reference, rollout[: cfg.objective.micro_batch_size or len(rollout)], found)
    optimizer = instantiate(cfg.optimizer)(trained)
    optimizer.step()
    with LiveBytes() as live:
        optimizer.step()
    found.peaks["update"] = live.peak
    states = [v for state in optimizer.state.values() for v in state.values()]
    found.parameters = sum(p.nbytes for p in policy.parameters())
    found.gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    found.optimizer = sum(v.nbytes for v in states)
    found.reference = sum(p.nbytes for p in reference.parameters()) if hasattr(reference, "parameters") else 0
    return found


def _rollout(cfg: DictConfig, policy: JanusPolicy, prompts: list[str], found: Measured) -> Rollout:
    settings = {"seed": 0, "step": 0, "cot": cfg.rollout.cot, "cfg_weight": cfg.rollout.cfg_weight}
    settings |= {"guided_logps": cfg.objective.logps == "guided", "chunk": cfg.rollout.batch_size}
    with _watched(found):
        rollout = policy.rollout(prompts, cfg.rollout.group_size, **settings)
    text, image = rollout.text, rollout.image
    found.lengths = lengths_of(rollout, policy)
    found.images, found.image_tokens = len(rollout), int(image.mask.sum())
    found.plan_tokens = 0 if text is None else int(text.mask.sum())
    return rollout


def lengths_of(rows: Rollout, policy: JanusPolicy) -> Lengths:
    """Columns as the policy runs them: in exact mode padding that all rows have is dropped."""
    text, image = rows.text, rows.image
    exact = policy.padding == "exact"
    context = int(image.context_mask.sum(dim=1).max()) if exact else image.context_ids.shape[1]
    if text is None:
        return Lengths(0, 0, 0, context)
    prompt = int(text.context_mask.sum(dim=1).max())
    counted = text.mask.sum().item() / len(rows)
    return Lengths(prompt, text.tokens.shape[1], counted, context, policy.max_plan_tokens)


@contextmanager
def _watched(found: Measured) -> Iterator[None]:
    """Peaks and operations of drawing and decoding, and the bytes of each decoder's buffers."""
    original = {name: getattr(drawing, name) for name in ("draw_text_tokens", "draw_image_tokens")}
    decode, init, compact, turns = JanusPolicy.decode, CachedDecoder.__init__, Loop.compact, packed.TURNS

    def watch(name: str, function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with counter() as flops, LiveBytes() as live:
                out = function(*args, **kwargs)
            found.peaks[name] = max(found.peaks.get(name, 0), live.peak)
            found.flops[name] = found.flops.get(name, 0) + flops.get_total_flops()
            return out

        return watched

    def made(self: CachedDecoder, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        buffers = [b for layer in self._cache.layers for b in layer._buffers]  # type: ignore[attr-defined]
        found.caches.append(sum(b.nbytes for b in buffers))

    drawing.draw_text_tokens = watch("plans", original["draw_text_tokens"])
    drawing.draw_image_tokens = watch("images", original["draw_image_tokens"])
    JanusPolicy.decode = watch("pixels", decode)  # type: ignore[method-assign]
    CachedDecoder.__init__ = made  # type: ignore[method-assign]
    # Plans are of devices, where rows that have ended stay and weights are not packed.
    Loop.compact = lambda self: None  # type: ignore[method-assign]
    packed.TURNS = 10**9
    try:
        yield
    finally:
        for name, function in original.items():
            setattr(drawing, name, function)
        JanusPolicy.decode, CachedDecoder.__init__ = decode, init  # type: ignore[method-assign]
        Loop.compact = compact  # type: ignore[method-assign]
        packed.TURNS = turns


def _score(policy: JanusPolicy, reference: Any, rows: Rollout, found: Measured) -> None:
    """Reference, and the policy's scores and gradients of `rows`, a segment at a time as in training."""
    found.scored = lengths_of(rows, policy)
    with counter() as flops, LiveBytes() as live:
        ref = reference.score(rows, entropy=False)
    found.flops["reference"], found.largest = flops.get_total_flops(), live.largest
    for name, columns in columns_of(rows).items():
        found.saved[name] = _saved(policy, rows, name)
        with LiveBytes() as live:
            scores = policy.score(rows, entropy=False, segment=name)
            found.kept[name] = live.now
            ones = torch.ones_like(scores.logps)
            loss, _ = policy_loss(scores.logps, ref.logps[:, columns], ones, scores.mask, beta=0.01)
            loss.backward()
        found.peaks["backward"] = max(live.peak, found.peaks.get("backward", 0))
        del scores, loss
        with counter() as flops:
            total = policy.score(rows, entropy=False, segment=name).logps.sum()
        found.flops["scoring"] = found.flops.get("scoring", 0) + flops.get_total_flops()
        with counter() as flops:
            total.backward()
        found.flops["backward"] = found.flops.get("backward", 0) + flops.get_total_flops()


def _saved(policy: JanusPolicy, rows: Rollout, segment: str) -> int:
    """Bytes that autograd saves of a segment's scoring, without the policy's weights."""
    own = {p.untyped_storage()._cdata for p in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.score(rows, entropy=False, segment=segment)  # its graph goes at once; `kept` alone holds the storages
    return sum(storage.nbytes() for storage in kept.values())


def counter() -> FlopCounterMode:
    """Counts attention on the CPU too, by the formulas that torch has for other kernels."""
    flash = torch.ops.aten

    def forward(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    mapping = {
        flash._scaled_dot_product_flash_attention_for_cpu: forward,
        flash._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    mode = FlopCounterMode(display=False, custom_mapping=mapping)
    mode.mod_tracker = _NoTracker()  # type: ignore[assignment]
    return mode


class _NoTracker:
    """In place of torch's tracker of modules, which fails on checkpointed models without gradient."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
