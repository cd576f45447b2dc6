"""What is logged of a step; docs/metrics.md says what each key means."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor

from egrpo.algorithm.mixing import centred_in_groups
from egrpo.types import RewardTable, Rollout

NO_SIGNAL = 1e-6  # standard deviation within a group below which a reward does not tell its samples apart


def rollout_metrics(rollout: Rollout, table: RewardTable, mixed: Tensor, group_size: int) -> dict[str, float]:
    """Rewards, entropies and plan lengths of N samples in groups; `mixed` [N] is what training compares."""
    within = mixed.view(-1, group_size).std(dim=1)
    totals = table.total[table.judged]
    metrics = {
        "reward": totals.mean().item(),
        "reward_std": totals.std().item() if len(totals) > 1 else 0.0,
        "reward_std_within_group": within.mean().item(),
        "groups_without_signal": (within < NO_SIGNAL).float().mean().item(),
    }
    metrics |= reward_metrics(table, group_size)
    for name, segment in (("text", rollout.text), ("image", rollout.image)):
        if segment is not None:
            entropy = segment.entropy[segment.mask]
            metrics[f"entropy_{name}"] = entropy.mean().item()
            metrics[f"entropy_{name}_std"] = entropy.std().item()
    if rollout.text is not None:
        metrics["plan_tokens"] = rollout.text.mask.sum(1).float().mean().item()
        metrics["plan_truncated"] = rollout.truncated.float().mean().item()
        metrics["plans_distinct"] = len(set(zip(rollout.prompts, rollout.plans, strict=True))) / len(rollout)
    return metrics


def reward_metrics(table: RewardTable, group_size: int) -> dict[str, float]:
    """Of each reward: raw mean and standard deviation over the images that it says something about (absent where there
    are fewer than one or two), standard deviation within groups, groups without signal, and what was dropped."""
    metrics = {}
    _, within = centred_in_groups(table.values, table.mask, group_size)
    for i, name in enumerate(table.names):
        told = table.values[table.told[:, i], i]
        if len(told):
            metrics[f"reward/{name}"] = told.mean().item()
        if len(told) > 1:
            metrics[f"reward_std/{name}"] = told.std().item()
        metrics[f"reward_std_within_group/{name}"] = within[:, i].mean().item()
        metrics[f"groups_without_signal/{name}"] = (within[:, i] < NO_SIGNAL).float().mean().item()
        metrics[f"reward_dropped/{name}"] = (~table.mask[:, i]).float().mean().item()
    return metrics


def speed_metrics(rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
    """`perf/` metrics of a step, from the seconds of its phases."""
    tokens = drawn_tokens(rollout)
    spent = sum(seconds.values())
    return {
        "perf/tokens_per_second": tokens / seconds["rollout"],
        "perf/images_per_second": len(rollout) / spent,
        "perf/seconds_step": spent,
        "perf/memory_gb": peak_memory_gb(),
        **{f"perf/seconds_{phase}": value for phase, value in seconds.items()},
    }


def drawn_tokens(rollout: Rollout) -> int:
    """Counted text and image tokens."""
    masks: list[Tensor] = [rollout.image.mask] + ([] if rollout.text is None else [rollout.text.mask])
    return int(sum(mask.sum().item() for mask in masks))


def peak_memory_gb() -> float:
    """Peak of the accelerator's allocator, or of the process on a CPU, in 10^9 bytes."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
