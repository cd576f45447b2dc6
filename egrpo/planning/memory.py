"""Bytes on one device in each phase of a step; a phase's peak is the sum of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from egrpo.planning.activations import (
    chunk_bytes,
    draw_bytes,
    forward_bytes,
    image_bytes,
    kept_logits,
    kv_cache_bytes,
    layer_work_bytes,
    logit_bytes,
    scored_tokens,
    text_bytes,
    text_positions,
)
from egrpo.planning.architecture import Architecture
from egrpo.planning.rewards import RewardModel
from egrpo.planning.standing import (
    ROWS,
    Parts,
    all_gradients,
    copying,
    gathered,
    gathered_for_rollout,
    held_gradients,
    preparing_bytes,
    reducing,
    replaced_gradients,
    standing,
    update_bytes,
)
from egrpo.planning.workload import Lengths, Workload
from egrpo.policy.capture import WIDTH

__all__ = ["ROWS", "Parts", "Phase", "final_caches", "phases"]


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


def final_caches(parts: Parts, lengths: Lengths) -> tuple[int, int]:
    """Keys and values of plans and of images at their full length, rows drawn at once; guidance doubles the latter.

    The cache of plans has room for the longest that is allowed, whatever is drawn. Graphs have room for a multiple of
    `WIDTH` columns.
    """
    arch, work = parts.arch, parts.work
    step = WIDTH if parts.caches_stay else 1
    text, image = (
        -(-tokens // step) * step
        for tokens in (lengths.prompt + lengths.plan_capacity, lengths.image_context + work.image_tokens)
    )
    plans = kv_cache_bytes(arch, work.rollout_rows, text) if work.cot else 0
    return plans, kv_cache_bytes(arch, work.rollout_rows * work.cfg_factor, image)


def phases(parts: Parts, lengths: Lengths) -> list[Phase]:
    """All phases of a run, in order: what comes before the first step, a step, and a checkpoint."""
    base = Phase("", standing(parts))
    if parts.caches_stay:
        base = base.plus(KV_cache=sum(final_caches(parts, lengths)))
    drawing = base.plus(gathered_weights=gathered_for_rollout(parts))
    scoring = base.plus(gathered_weights=gathered(parts), gradients=held_gradients(parts))
    found = {"preparing": _preparing(parts)}
    if parts.keeps_copy:
        found["copying"] = base.plus(gathered_weights=copying(parts))
    if parts.work.cot:
        found["plans"] = _plans(drawing, parts, lengths)
    found |= {
        "images": _images(drawing, parts, lengths),
        "pixels": drawing.plus(activations=pixel_bytes(parts.arch, parts.work)),
        "rewards": _rewards(base, parts.rewards),
        "reference": _reference(base.plus(gathered_weights=gathered(parts, reference=True)), parts, lengths),
    }
    if parts.ranks_padding:
        found["padding"] = _padding(base.plus(gathered_weights=gathered(parts)), parts, lengths)
    found |= {
        "scoring": _scoring(scoring, parts, lengths),
        "backward": _backward(scoring, parts, lengths),
        "update": base.plus(gradients=all_gradients(parts), optimizer=update_bytes(parts)),
        "checkpoint": base,
    }
    return [replace(phase, name=name) for name, phase in found.items()]


def _preparing(parts: Parts) -> Phase:
    """Rewards are loaded, then the policy and its reference, then the strategy sets itself up; there is no rollout copy
    yet, and optimizers make their states in the first step."""
    rows = standing(parts) | {"rollout copy": 0.0, "gathered weights": 0.0}
    masters = 4.0 * parts.arch.trained / parts.sharding.optimizer
    rows["optimizer"] = min(rows["optimizer"], masters if parts.sharding.master_weights else 0.0)
    return Phase("", rows).plus(optimizer=preparing_bytes(parts))


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
    sizes, work, sharding = (parts.arch, parts.work, lengths), parts.work, parts.sharding
    text, image = scored_tokens(work, lengths)
    work_rows = work.micro_rows * work.score_factor
    plan_layer = layer_work_bytes(parts.arch, work.micro_rows, text) if text else 0
    image_layer = layer_work_bytes(parts.arch, work_rows, image, masked=not work.exact)
    new = all_gradients(parts) + replaced_gradients(parts) - held_gradients(parts)
    if not (sharding.one_pass and text):
        found = [
            base.plus(activations=text_bytes(*sizes) + plan_layer, gradients=new, gathered_weights=reducing(parts)),
            base.plus(activations=image_bytes(*sizes) + image_layer, gradients=new, gathered_weights=reducing(parts)),
        ]
    else:
        waiting = parts.arch.language_trained_bytes  # what autograd has from images, until plans add theirs
        found = [
            base.plus(activations=text_bytes(*sizes) + image_bytes(*sizes) + image_layer),
            base.plus(activations=text_bytes(*sizes) + image_layer, gradients=waiting),
            # The text head's come next; the device that holds them under ZeRO-2 then makes room for all of its own.
            base.plus(activations=text_bytes(*sizes) + plan_layer, gradients=waiting + new),
        ]
        found = [phase.plus(gathered_weights=reducing(parts)) for phase in found]
    if sharding.by_layer:
        around = float(parts.arch.around * parts.arch.dtype.itemsize)  # last of all, when activations are gone
        rows = base.rows | {"gathered weights": standing(parts)["gathered weights"] + around}
        found.append(replace(base, rows=rows).plus(gradients=new + 2 * around * bool(parts.arch.text_matmul.trained)))
    return _larger(*found)


def _reference(base: Phase, parts: Parts, lengths: Lengths) -> Phase:
    """A layer's activations and a chunk of logits without gradient, of plans or of images."""
    arch, work = parts.arch, parts.work
    text, image = scored_tokens(work, lengths)
    rows = work.micro_rows * work.score_factor
    images = chunk_bytes(arch, work.image_positions, work.chunk_size, arch.codes * work.score_factor)
    found = [base.plus(activations=forward_bytes(arch, rows, image), logits=images)]
    if text:
        plans = chunk_bytes(arch, text_positions(work, lengths), work.chunk_size, arch.vocab)
        found.append(base.plus(activations=forward_bytes(arch, work.micro_rows, text), logits=plans))
    return _larger(*found)


def _padding(base: Phase, parts: Parts, lengths: Lengths) -> Phase:
    """The policy's scores of whole plans, padding included."""
    arch, work = parts.arch, parts.work
    text, _ = scored_tokens(work, lengths)
    logits = chunk_bytes(arch, work.micro_rows * lengths.plan, work.chunk_size, arch.vocab)
    return base.plus(activations=forward_bytes(arch, work.micro_rows, text), logits=logits)


def _larger(*phases: Phase) -> Phase:
    return max(phases, key=lambda phase: phase.total)


def pixel_bytes(arch: Architecture, work: Workload) -> int:
    """The VQ decoder's activations."""
    return work.decode_batch * arch.decode_bytes


def _rewards(base: Phase, rewards: Sequence[RewardModel]) -> Phase:
    """One reward after another; an offloaded model is there while it scores."""
    extra = [base.plus(reward_models=m.bytes * m.offload, activations=m.activations) for m in rewards]
    return max(extra, key=lambda phase: phase.total, default=base)
