"""Several rewards as one table: checked, weighted, never silently 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from egrpo.rewards.base import Reward, RewardError
from egrpo.types import PromptRecord, RewardTable


@dataclass(frozen=True)
class WeightedReward:
    """One column of the ensemble."""

    reward: Reward
    weight: float = 1.0


class RewardEnsemble:
    """Calls every reward on the same images and mixes them by weight (T2I-R1 and EG-GRPO: a plain sum).

    Raises:
        ValueError: there is no reward, or all weights are 0.
    """

    def __init__(self, rewards: Mapping[str, WeightedReward]):
        if not rewards or not any(r.weight for r in rewards.values()):
            raise ValueError(
                f"the reward ensemble {sorted(rewards)} gives no signal: choose rewards with reward=[NAME, ...] and "
                "give at least one a weight other than 0 with reward.NAME.weight=..."
            )
        self.rewards = dict(rewards)

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> RewardTable:
        """N images and records -> table with one raw column a reward.

        Raises:
            RewardError: a reward raised or returned anything but N finite numbers.
        """
        columns = [checked(name, r.reward, images, records) for name, r in self.rewards.items()]
        weights = torch.tensor([r.weight for r in self.rewards.values()], dtype=torch.float32)
        return RewardTable(list(self.rewards), torch.stack(columns, dim=1), weights)


def checked(name: str, reward: Reward, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
    """[N] float32 from `reward`, or RewardError with the reward's name, the fault and the first prompt it hit."""
    try:
        values = torch.as_tensor(reward(images, records), dtype=torch.float32).cpu()
    except Exception as error:
        raise RewardError(f"reward {name!r} failed on {len(images)} images: {type(error).__name__}: {error}") from error
    if values.shape != (len(images),):
        raise RewardError(f"reward {name!r} returned shape {tuple(values.shape)} for {len(images)} images")
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward {name!r} returned {values[bad[0]].item()} for {len(bad)} of {len(images)} images, "
            f"the first for the prompt {records[bad[0]].prompt!r}"
        )
    return values
