"""Several rewards as one table: checked, normalised, weighted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from egrpo.algorithm.mixing import comparable_in_groups, in_whole_groups
from egrpo.base.errors import UserError
from egrpo.rewards.base import Reward, RewardError
from egrpo.rewards.measuring import DROP, DROP_GROUP, STOP, measure
from egrpo.rewards.normalization import Normalization, Raw
from egrpo.types import PromptRecord, RewardTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedReward:
    """One column of the ensemble.

    `on_error="stop"`: a failure ends the run. `"drop"`: this reward is masked for the images that it failed for, which
    are then compared with their group by the other rewards alone. `"drop_group"`: it is masked for all of the group, so
    that every comparison is by the same rewards. `train/reward_dropped/NAME` counts the images that it failed for.
    """

    reward: Reward
    weight: float = 1.0
    on_error: str = STOP

    def __post_init__(self) -> None:
        if self.on_error not in (STOP, DROP, DROP_GROUP):
            raise UserError(f"on_error={self.on_error!r} of a reward: choose {STOP} or {DROP}, or {DROP_GROUP}")


class RewardEnsemble:
    """Calls every reward on the same images and mixes them by weight (T2I-R1 and EG-GRPO: a plain sum).

    Args:
        rewards: By name; None = left out (`reward.NAME=null`).
        normalization: Of the rewards before they are summed for training; None = none.
        failures: Folder that keeps the images and prompts of a failure that ends the run; None = nowhere.

    Raises:
        UserError: there is no reward, or all weights are 0.
    """

    def __init__(
        self,
        rewards: Mapping[str, WeightedReward | None],
        normalization: Normalization | None = None,
        failures: str | Path | None = None,
    ):
        chosen = {name: reward for name, reward in rewards.items() if reward is not None}
        if not any(r.weight for r in chosen.values()):
            raise UserError(
                f"the reward ensemble {sorted(chosen)} gives no signal: choose rewards with reward=[NAME, ...] and "
                "give at least one a weight other than 0 with reward.NAME.weight=..."
            )
        self.rewards = chosen
        self.normalization = normalization or Raw()
        self.failures = None if failures is None else Path(failures)

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> RewardTable:
        """N images and records -> table with one raw column a reward.

        Raises:
            RewardError: a reward failed and is not to be dropped.
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
        unjudged = (~table.judged).nonzero().flatten().tolist()
        if unjudged:
            log.warning(
                "no reward is left for %d of %d images, the first for the prompt %r: they do not move the policy",
                *(len(unjudged), len(images), records[unjudged[0]].prompt),
            )
        return table

    def mix(self, table: RewardTable, group_size: int) -> Tensor:
        """What training compares within groups, [N] float32: normalised, then summed by weight. Once a training step.

        Args:
            table: Of all samples of the step.
            group_size: Samples a prompt; those of a group are consecutive.

        Raises:
            RewardError: not one sample of the step has a reward.
        """
        if not bool(table.judged.any()):
            raise RewardError(
                f"no reward is left for any of the {len(table.values)} images of this step: every reward with a weight "
                "was dropped; look at the warnings above, or stop at the first failure with reward.NAME.on_error=stop"
            )
        by_group = torch.tensor([self.rewards[name].on_error == DROP_GROUP for name in table.names])
        mask = in_whole_groups(table.mask, by_group, group_size)
        values = self.normalization(table.names, table.values, mask, group_size)
        return comparable_in_groups(values, table.weights, mask, group_size)

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
