"""Dry calls of what a run will need only after minutes, so that a bad setting is told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from egrpo.data.datamodule import check_prompts_per_step, check_samples_per_step
from egrpo.training.settings import RolloutSettings


def check_entropy_policy(entropy_policy: Callable[..., Any]) -> None:
    """Calls the entropy policy once on two sequences of two text and two image tokens.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    mask = torch.ones(2, 4, dtype=torch.bool)
    is_image = torch.tensor([[False, False, True, True]] * 2)
    _told("entropy_policy", entropy_policy, torch.tensor([1.0, -1.0]), torch.rand(2, 4), mask, is_image)


def check_optimizer(optimizer: Callable[..., Any], scheduler: Callable[..., Any]) -> None:
    """Builds optimizer and scheduler once for a single weight.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    _told("scheduler", scheduler, _told("optimizer", optimizer, [weight]))


def check_share(data: Any, rollout: RolloutSettings, ranks: int) -> None:
    """Before anything is measured: whether a step's prompts, or their samples, divide among the ranks.

    Raises:
        ValueError: they do not.
    """
    if rollout.group_across_ranks:
        check_samples_per_step(data.prompts_per_step, rollout.group_size, ranks)
    else:
        check_prompts_per_step(data.prompts_per_step, ranks)


def _told(group: str, part: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return part(*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{group}: {error}") from error
