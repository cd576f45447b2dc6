"""What is done to each reward before rewards are summed, so that their weights compare. Chosen by `normalization=`."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from egrpo.algorithm.mixing import centred_in_groups, zscores_in_groups


class Normalization(Protocol):
    """Raw rewards [N, R] to comparable ones, once a training step."""

    def __call__(self, names: list[str], values: Tensor, mask: Tensor, group_size: int) -> Tensor:
        """names [R], values [N, R], mask [N, R] (True = counted), groups of consecutive samples -> [N, R]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know; goes into the checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """Nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Raw(Stateless):
    """As published: raw rewards are summed, so that a reward with a wide range decides."""

    def __call__(self, names: list[str], values: Tensor, mask: Tensor, group_size: int) -> Tensor:
        return values


class GroupZScore(Stateless):
    """Within each group every reward has mean 0 and standard deviation 1, or is 0 where it does not tell samples apart.

    Args:
        eps: Added to the standard deviation, in units of the reward.
    """

    def __init__(self, eps: float = 1e-4):
        self.eps = eps

    def __call__(self, names: list[str], values: Tensor, mask: Tensor, group_size: int) -> Tensor:
        return zscores_in_groups(values, mask, group_size, self.eps)


class RunningScale:
    """Every reward is divided by its running standard deviation within groups.

    Unlike z-scores, a group in which a reward hardly varies stays a group in which it hardly matters. The scale is the
    root of an exponential mean of the within-group variance over steps.

    Args:
        decay: Of the mean, a step.
        eps: Added to the scale, in units of the reward: what varies less is rounding, and must not become a signal.
    """

    def __init__(self, decay: float = 0.95, eps: float = 1e-4):
        self.decay, self.eps = decay, eps
        self.variance: dict[str, float] = {}
        self.weight: dict[str, float] = {}  # corrects the mean for its start at 0

    def __call__(self, names: list[str], values: Tensor, mask: Tensor, group_size: int) -> Tensor:
        _, std = centred_in_groups(values, mask, group_size)
        enough = mask.view(-1, group_size, len(names)).sum(dim=1) > 1  # [N / G, R] groups that have a variance
        scales = []
        for column, name in enumerate(names):
            if enough[:, column].any():
                variance = std[enough[:, column], column].double().square().mean().item()
                self.variance[name] = self._updated(self.variance.get(name, 0.0), variance)
                self.weight[name] = self._updated(self.weight.get(name, 0.0), 1.0)
            mean = self.variance.get(name, 0.0) / self.weight.get(name, 1.0)
            scales.append(mean**0.5 + self.eps)
        return values / torch.tensor(scales, dtype=values.dtype, device=values.device)

    def _updated(self, mean: float, value: float) -> float:
        return self.decay * mean + (1 - self.decay) * value

    def state_dict(self) -> dict[str, Any]:
        return {"variance": dict(self.variance), "weight": dict(self.weight)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.variance, self.weight = dict(state["variance"]), dict(state["weight"])
