"""Several rewards as one table: checked, normalised, weighted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from egrpo.algorithm.mixing import mix_rewards
from egrpo.rewards.base import Reward, RewardError
from egrpo.rewards.measuring import DROP, STOP, measure
from egrpo.rewards.normalization import Normalization, Raw
from egrpo.types import PromptRecord, RewardTable


@dataclass(frozen=True)
class WeightedReward:
    """One column of the ensemble.

    `on_error="stop"`: a failure ends the run. `"drop"`: this reward is masked for the images that it failed for, the
    other rewards' weights are scaled up there, and `train/reward_dropped/NAME` counts it.
    """

    reward: Reward
    weight: float = 1.0
    on_error: str = STOP

    def __post_init__(self) -> None:
        if self.on_error not in (STOP, DROP):
            raise ValueError(f"on_error={self.on_error!r} of a reward: choose {STOP} or {DROP}")


class RewardEnsemble:
    """Calls every reward on the same images and mixes them by weight (T2I-R1 and EG-GRPO: a plain sum).

    Args:
        rewards: By name; None = left out (`reward.NAME=null`).
        normalization: Of the rewards before they are summed for training; None = none.
        failures: Folder that keeps the images and prompts of a failure that ends the run; None = nowhere.

    Raises:
        ValueError: there is no reward, or all weights are 0.
    """

    def __init__(
        self,
        rewards: Mapping[str, WeightedReward | None],
        normalization: Normalization | None = None,
        failures: str | Path | None = None,
    ):
        chosen = {name: reward for name, reward in rewards.items() if reward is not None}
        if not any(r.weight for r in chosen.values()):
            raise ValueError(
                f"the reward ensemble {sorted(chosen)} gives no signal: choose rewards with reward=[NAME, ...] and "
                "give at least one a weight other than 0 with reward.NAME.weight=..."
            )
        self.rewards = chosen
        self.normalization = normalization or Raw()
        self.failures = None if failures is None else Path(failures)

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> RewardTable:
        """N images and records -> table with one raw column a reward.

        Raises:
            RewardError: a reward failed and is not to be dropped, or no weighted reward is left for an image.
        """
        columns = [
            measure(name, r.reward, images, records, on_error=r.on_error, failures=self.failures)
            for name, r in self.rewards.items()
        ]
        table = RewardTable(
            names=list(self.rewards),
            values=torch.stack([column.values for column in columns], dim=1),
            weights=torch.tensor([r.weight for r in self.rewards.values()], dtype=torch.float32),
            mask=torch.stack([column.mask for column in columns], dim=1),
            applies=torch.stack([applying(name, r.reward, records) for name, r in self.rewards.items()], dim=1),
        )
        unjudged = (~(table.mask & (table.weights != 0)).any(dim=1)).nonzero().flatten().tolist()
        if unjudged:
            raise RewardError(
                f"no reward is left for {len(unjudged)} of {len(images)} images, the first for the prompt "
                f"{records[unjudged[0]].prompt!r}: every reward with a weight was dropped there; look at the warnings "
                "above, or stop at the first failure with reward.NAME.on_error=stop"
            )
        return table

    def mix(self, table: RewardTable, group_size: int) -> Tensor:
        """What training compares, [N] float32: normalised, then summed by weight. Once a training step."""
        values = self.normalization(table.names, table.values, table.mask, group_size)
        return mix_rewards(values, table.weights, table.mask)

    def state_dict(self) -> dict[str, Any]:
        """What the normalisation remembers; the rewards themselves are frozen."""
        return self.normalization.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.normalization.load_state_dict(state)


def applying(name: str, reward: Reward, records: list[PromptRecord]) -> Tensor:
    """[N] bool, False where the reward is a constant whatever the image; see `egrpo.rewards.base.Reward`.

    Raises:
        RewardError: the reward's own `applies` gives something else.
    """
    applies = getattr(reward, "applies", None)
    if applies is None:
        return torch.ones(len(records), dtype=torch.bool)
    try:
        told = torch.as_tensor(applies(records), dtype=torch.bool).cpu()
    except Exception as error:
        raise RewardError(f"applies() of reward {name!r} failed: {type(error).__name__}: {error}") from error
    if told.shape != (len(records),):
        raise RewardError(f"applies() of reward {name!r} returned shape {tuple(told.shape)} for {len(records)} records")
    return told
