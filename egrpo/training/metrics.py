"""What is logged of a step; docs/metrics.md says what each key means."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor

from egrpo.types import RewardTable, Rollout


def rollout_metrics(rollout: Rollout, table: RewardTable, group_size: int) -> dict[str, float]:
    """Rewards, entropies and plan lengths of N samples in groups."""
    total = table.total.view(-1, group_size)
    metrics = {
        "reward": total.mean().item(),
        "reward_std": table.total.std().item(),
        "reward_std_within_group": total.std(dim=1).mean().item(),
        "groups_without_signal": (total.std(dim=1) < 1e-6).float().mean().item(),
    }
    for name, column in zip(table.names, table.values.T, strict=True):
        metrics[f"reward/{name}"] = column.mean().item()
        metrics[f"reward_std/{name}"] = column.std().item()
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
