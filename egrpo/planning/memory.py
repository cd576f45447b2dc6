"""Bytes on one device in each phase of a step; a phase's peak is the sum of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from egrpo.planning.activations import (
    draw_bytes,
    forward_bytes,
    image_bytes,
    kept_logits,
    kv_cache_bytes,
    layer_work_bytes,
    logit_bytes,
    scored_tokens,
    text_bytes,
)
from egrpo.planning.architecture import Architecture
from egrpo.planning.optimizers import OptimizerCost
from egrpo.planning.rewards import RewardModel
from egrpo.planning.sharding import Sharding
from egrpo.planning.workload import Lengths, Workload

ROWS = (
    *("parameters", "gathered weights", "gradients", "optimizer", "reference"),
    *("reward models", "KV cache", "logits", "activations"),
)
FSDP_LIVE_LAYERS = 2  # the one at work and the next


@dataclass(frozen=True)
class Phase:
    """One phase: bytes by row, of those in ROWS."""

    name: str
    rows: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.rows.values())

    def plus(self, **rows: float) -> Phase:
        """The same with more in some rows; `_` stands for a blank."""
        more = {name.replace("_", " "): value for name, value in rows.items()}
        return replace(self, rows={**self.rows, **{name: self.rows.get(name, 0) + v for name, v in more.items()}})


@dataclass(frozen=True)
class Parts:
    """What the memory of a step is made of."""

    arch: Architecture
    work: Workload
    sharding: Sharding
    optimizer: OptimizerCost  # of the type that the optimizer works on
    rewards: Sequence[RewardModel]
    gather_for_rollout: bool = True
    caches_stay: bool = False  # buffers that captured steps read stay from one rollout to the next


def standing(parts: Parts) -> dict[str, float]:
    """What is there in every phase, after the first step."""
    arch, sharding = parts.arch, parts.sharding
    weights = 0 if sharding.offload_parameters else 1
    rows: dict[str, float] = dict.fromkeys(ROWS, 0.0)
    rows["parameters"] = weights * arch.parameter_bytes / sharding.parameters
    rows["reference"] = weights * arch.reference_bytes / sharding.reference
    rows["optimizer"] = optimizer_bytes(parts)
    rows["reward models"] = float(sum(model.bytes for model in parts.rewards if not model.offload))
    if sharding.gradients_stay:
        rows["gradients"] = kept_gradients(parts)
    return rows


def optimizer_bytes(parts: Parts) -> float:
    """States, and float32 master weights where the strategy keeps them."""
    if parts.sharding.offload_optimizer:
        return 0.0
    master = 4 if parts.sharding.master_weights else 0
    return parts.arch.trained * (parts.optimizer.state + master) / parts.sharding.optimizer


def kept_gradients(parts: Parts) -> float:
    """What of the gradients is there between steps: copies for communication, or the strategy's own partition."""
    sharding = parts.sharding
    if sharding.gradient_copies:
        return float(parts.arch.trained_bytes * sharding.gradient_copies)
    return parts.arch.trained_bytes / sharding.gradients


def all_gradients(parts: Parts) -> float:
    """Gradients and their copies while they are added up."""
    return parts.arch.trained_bytes / parts.sharding.gradients * (1 + parts.sharding.gradient_copies)


def gathered(parts: Parts, rollout: bool) -> float:
    """Weights that sharding brings together for the time that they are used."""
    arch, sharding = parts.arch, parts.sharding
    if sharding.whole:
        return 0.0
    if rollout and parts.gather_for_rollout:
        return float(arch.parameter_bytes)
    live = sharding.live_parameters
    if live is None:
        live = FSDP_LIVE_LAYERS * arch.largest_layer + arch.text_matmul.weights
    return float(min(live, arch.parameters) * arch.dtype.itemsize)


def final_caches(parts: Parts, lengths: Lengths) -> tuple[int, int]:
    """Keys and values of plans and of images at their full length, rows drawn at once; guidance doubles the latter.

    The cache of plans has room for the longest that is allowed, whatever is drawn.
    """
    arch, work = parts.arch, parts.work
    plans = kv_cache_bytes(arch, work.rollout_rows, lengths.prompt + lengths.plan_capacity) if work.cot else 0
    rows = work.rollout_rows * work.cfg_factor
    return plans, kv_cache_bytes(arch, rows, lengths.image_context + work.image_tokens)


def phases(parts: Parts, lengths: Lengths) -> list[Phase]:
    """All phases of a step, in order."""
    base = Phase("", standing(parts))
    if parts.caches_stay:
        base = base.plus(KV_cache=sum(final_caches(parts, lengths)))
    drawing = base.plus(gathered_weights=gathered(parts, rollout=True))
    scoring = replace(base, rows=base.rows | {"gradients": all_gradients(parts)})
    scoring = scoring.plus(gathered_weights=gathered(parts, rollout=False))
    found = [_named("plans", _plans(drawing, parts, lengths))] if parts.work.cot else []
    return found + [
        _named("images", _images(drawing, parts, lengths)),
        _named("pixels", drawing.plus(activations=pixel_bytes(parts.arch, parts.work))),
        _named("rewards", _rewards(base, parts.rewards)),
        _named("scoring", _scoring(scoring, parts, lengths)),
        _named("backward", _backward(scoring, parts, lengths)),
        _named("update", scoring.plus(gathered_weights=-gathered(parts, False), optimizer=update_bytes(parts))),
    ]


def _named(name: str, phase: Phase) -> Phase:
    return replace(phase, name=name)


def _plans(base: Phase, parts: Parts, lengths: Lengths) -> Phase:
    """Drawing plans: the larger of reading all prompts and of drawing with the cache at its full length."""
    arch, rows = parts.arch, parts.work.rollout_rows
    read, _ = parts.work.prefill_rows(parts.work.chunks[0])
    return _larger(
        base.plus(
            KV_cache=kv_cache_bytes(arch, read, lengths.prompt), activations=forward_bytes(arch, read, lengths.prompt)
        ),
        base.plus(
            KV_cache=0 if parts.caches_stay else final_caches(parts, lengths)[0],
            logits=draw_bytes(rows, False, arch.vocab),
        ),
    )


def _images(base: Phase, parts: Parts, lengths: Lengths) -> Phase:
    """Drawing images, likewise; guidance doubles the rows."""
    arch, work = parts.arch, parts.work
    _, read = work.prefill_rows(work.chunks[0])
    context = lengths.image_context
    return _larger(
        base.plus(KV_cache=kv_cache_bytes(arch, read, context), activations=forward_bytes(arch, read, context)),
        base.plus(
            KV_cache=0 if parts.caches_stay else final_caches(parts, lengths)[1],
            logits=draw_bytes(work.rollout_rows, work.guided, arch.codes),
        ),
    )


def _scoring(base: Phase, parts: Parts, lengths: Lengths) -> Phase:
    """A chunk of logits, of plans or of images, while scoring and again in the backward pass; each has both passes by
    itself."""
    sizes = (parts.arch, parts.work, lengths)
    (text, image), (text_again, image_again) = (logit_bytes(*sizes, backward=backward) for backward in (False, True))
    return _larger(
        base.plus(activations=text_bytes(*sizes), logits=max(text, text_again + kept_logits(*sizes))),
        base.plus(activations=image_bytes(*sizes), logits=max(image, image_again)),
    )


def _backward(base: Phase, parts: Parts, lengths: Lengths) -> Phase:
    """A layer's backward pass, of plans or of images; in one pass images go first and plans wait."""
    sizes, work = (parts.arch, parts.work, lengths), parts.work
    text, image = scored_tokens(work, lengths)
    work_rows = work.micro_rows * work.score_factor
    plan_layer = layer_work_bytes(parts.arch, work.micro_rows, text) if text else 0
    image_layer = layer_work_bytes(parts.arch, work_rows, image, masked=not work.exact)
    both = parts.sharding.one_pass and bool(text)
    return _larger(
        base.plus(activations=text_bytes(*sizes) + plan_layer, gradients=both * parts.arch.language_trained_bytes),
        base.plus(activations=image_bytes(*sizes) + image_layer + both * text_bytes(*sizes)),
    )


def _larger(*phases: Phase) -> Phase:
    return max(phases, key=lambda phase: phase.total)


def pixel_bytes(arch: Architecture, work: Workload) -> int:
    """The VQ decoder's activations."""
    return work.decode_batch * arch.decode_bytes


def _rewards(base: Phase, rewards: Sequence[RewardModel]) -> Phase:
    """One reward after another; an offloaded model is there while it scores."""
    extra = [base.plus(reward_models=m.bytes * m.offload, activations=m.activations) for m in rewards]
    return max(extra, key=lambda phase: phase.total, default=base)


def update_bytes(parts: Parts) -> float:
    """What the optimizer takes within its step; with master weights the gradients become float32 too."""
    if parts.sharding.offload_optimizer:
        return 0.0
    more = 4 if parts.sharding.master_weights else 0
    return parts.arch.trained * (parts.optimizer.scratch + more) / parts.sharding.optimizer


def optimizer_dtype(arch: Architecture, sharding: Sharding) -> torch.dtype:
    """Type of the parameters that the optimizer works on."""
    return torch.float32 if sharding.master_weights else arch.dtype
