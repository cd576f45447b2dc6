"""Settings of the training step, checked when they are read from the configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from egrpo import distributed
from egrpo.base.errors import UserError
from egrpo.data.datamodule import check_samples_per_step
from egrpo.policy.drawing import Drawing

T = TypeVar("T")


class TrainingError(UserError, RuntimeError):
    """The run cannot go on (loss or gradient is not finite). The message says where and what to try."""


@dataclass(frozen=True)
class RolloutSettings:
    """How samples are drawn.

    Args:
        group_size: Samples a prompt, G.
        cfg_weight: Guidance of image tokens; 1 = none.
        temperature: Divides all logits, in sampling and in scoring.
        cot: Whether a plan (semantic CoT) is written before the image is drawn.
        top_k: Draws from this many most likely tokens only; None = all. What is recorded and scored does not change.
        top_p: Draws from the fewest tokens that hold this much probability; None = all.
        plan_top_k: Takes the place of `top_k` for plans; None = the same.
        batch_size: Most sequences sampled at once; None = all. The result does not depend on it.
        gather: Where weights are divided among ranks: "full" = gathered once for each rollout (fast; a whole copy must
            fit), "shard" = layer by layer at every token, all ranks in step.
        group_across_ranks: Every rank gets all prompts of a step and draws an equal part of their samples, so that the
            samples of a prompt may lie on several ranks; False = whole groups on a rank.
        overlap_rewards: The rewards judge in a thread (on a GPU: and a stream) of their own while the reference scores;
            the results are the same. None = on a CPU: small kernels of an accelerator are launched more slowly by two
            threads. Rewards whose precision is "tf32" wait in any case, since TF32 is set for the whole process.

    Raises:
        UserError: a setting is out of range.
    """

    group_size: int = 8
    cfg_weight: float = 1.0
    temperature: float = 1.0
    cot: bool = True
    top_k: int | None = None
    top_p: float | None = None
    plan_top_k: int | None = None
    batch_size: int | None = None
    gather: str = "full"
    group_across_ranks: bool = False
    overlap_rewards: bool | None = None

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise UserError(
                f"rollout.group_size={self.group_size}: advantages compare the samples of one prompt, so a group needs "
                "at least 2; set rollout.group_size=8 for the published value"
            )
        Drawing(self.temperature, False, self.top_k, self.top_p, self.cfg_weight)  # says which is out of range
        if self.plan_top_k is not None and self.plan_top_k < 1:
            raise UserError(f"rollout.plan_top_k={self.plan_top_k}: give at least 1, or null for rollout.top_k")
        if self.gather not in ("full", "shard"):
            raise UserError(f"rollout.gather={self.gather}: choose full or shard")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"rollout.batch_size={self.batch_size}: give at least 1, or null for all at once")


def own_samples(
    records: Sequence[T], settings: RolloutSettings, earlier: Sequence[int] | None = None
) -> tuple[list[T], list[int]]:
    """What this rank draws of a step's prompts.

    Args:
        records: This rank's prompts, or with `group_across_ranks` those of all ranks.
        settings: Group size G, and whether groups are spread.
        earlier: How many groups of the same prompt come before each record's in the step; None = 0.

    Returns:
        The prompt of each sample and its index among the samples of that prompt (within the group, where nothing
        repeats), in group order; the ranks' parts join in rank order.

    Raises:
        UserError: the step's samples do not divide among the ranks.
    """
    size = settings.group_size
    rows = range(len(records) * size)
    if settings.group_across_ranks:
        world = distributed.world_size()
        check_samples_per_step(len(records), size, world)
        share = len(rows) // world
        rows = rows[distributed.rank() * share :][:share]
    firsts = [size * count for count in earlier or [0] * len(records)]
    return [records[row // size] for row in rows], [firsts[row // size] + row % size for row in rows]


def earlier_occurrences(prompts: Sequence[str], *, on_all_ranks: bool = False) -> list[int]:
    """How often each of this rank's prompts came before it in the step, over all ranks; zeros where nothing repeats.

    Samples count on from there, so that those of equal prompts differ, however prompts are divided among ranks.

    Args:
        prompts: This rank's, in order.
        on_all_ranks: Every rank has the same prompts: those of the whole step.
    """
    parts = [list(prompts)] if on_all_ranks else distributed.gather(list(prompts))
    before = [] if on_all_ranks else [prompt for part in parts[: distributed.rank()] for prompt in part]
    counts, found = Counter(before), []
    for prompt in prompts:
        found.append(counts[prompt])
        counts[prompt] += 1
    return found


def token_denominator(mask: Tensor, token_mean: str) -> Tensor:
    """What sums over tokens are divided by: 0-d, or [N] for each sequence its own.

    Args:
        mask: [N, T] of all that this rank has of the step; the other ranks' tokens or sequences are counted in.
        token_mean: "batch" or "sequence", see `Objective`.
    """
    total = mask.sum() if token_mean == "batch" else torch.tensor(len(mask), device=mask.device)
    distributed.sum_in_place([total])
    return total if token_mean == "batch" else mask.sum(dim=1) * total


@dataclass(frozen=True)
class Objective:
    """What is optimised (GRPO, arXiv 2402.03300 eq. 3, with the k3 estimate of KL).

    Args:
        beta: Weight of KL to the reference.
        clip_low: Lower clip of the ratio, 1 - clip_low; None = no lower clip.
        clip_high: Upper clip of the ratio, 1 + clip_high; None = no upper clip.
        updates_per_rollout: Optimizer steps on one rollout; above 1 the ratio is to the policy that drew it.
        micro_batch_size: Sequences scored at once; None = all. Gradients do not depend on it, save by what the released
            code does with padding: image prompts in published padding, and plans whose padding is ranked, are padded
            to the longest of so many consecutive samples.
        max_grad_norm: Gradients are scaled down to this norm.
        logps: Which distribution of image tokens is trained: "conditional" (as published: tokens are drawn with
            guidance, but scored without) or "guided" (the very distribution that they are drawn from).

        token_mean: "batch" = one mean over all counted tokens of a step, as the released code, so that long plans weigh
            more; "sequence" = the mean over sequences of each one's mean (GRPO's equation).

    Raises:
        UserError: a setting is out of range.
    """

    beta: float = 0.01
    clip_low: float | None = None
    clip_high: float | None = None
    updates_per_rollout: int = 1
    micro_batch_size: int | None = None
    max_grad_norm: float = 1.0
    logps: str = "conditional"
    token_mean: str = "batch"

    def __post_init__(self) -> None:
        if self.updates_per_rollout < 1:
            raise UserError(f"objective.updates_per_rollout={self.updates_per_rollout}: give at least 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"objective.micro_batch_size={self.micro_batch_size}: give at least 1, or null for all")
        if self.logps not in ("conditional", "guided"):
            raise UserError(f"objective.logps={self.logps}: choose conditional or guided")
        if self.token_mean not in ("batch", "sequence"):
            raise UserError(f"objective.token_mean={self.token_mean}: choose batch or sequence")
        for name in ("clip_low", "clip_high"):
            value = getattr(self, name)
            if value is not None and not 0 < value < (1 if name == "clip_low" else float("inf")):
                raise UserError(
                    f"objective.{name}={value}: give a distance from ratio 1, such as 0.2, or null for none"
                )
        if not 0 <= self.beta < float("inf"):
            raise UserError(
                f"objective.beta={self.beta}: it weighs a divergence and must be a number from 0 on, not negative"
            )
        if not 0 < self.max_grad_norm < float("inf"):
            raise UserError(f"objective.max_grad_norm={self.max_grad_norm}: it must be a finite number above 0")
