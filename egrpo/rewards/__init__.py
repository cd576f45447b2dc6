"""Rewards: a protocol, an ensemble, one file a reward."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from egrpo.rewards.base import PartialRewardError, Reward, RewardError
from egrpo.rewards.ensemble import RewardEnsemble, WeightedReward

if TYPE_CHECKING:
    from egrpo.rewards.gdino import GroundingDinoReward
    from egrpo.rewards.git import GITReward
    from egrpo.rewards.hps import HPSReward
    from egrpo.rewards.http import HTTPReward
    from egrpo.rewards.orm import ORMReward
    from egrpo.rewards.python import PythonReward

# Each is imported when it is asked for: its libraries take seconds, and a run uses few of them.
_MODULES = {
    "GITReward": "git",
    "GroundingDinoReward": "gdino",
    "HPSReward": "hps",
    "HTTPReward": "http",
    "ORMReward": "orm",
    "PythonReward": "python",
}

__all__ = [
    "GITReward",
    "GroundingDinoReward",
    "HPSReward",
    "HTTPReward",
    "ORMReward",
    "PartialRewardError",
    "PythonReward",
    "Reward",
    "RewardEnsemble",
    "RewardError",
    "WeightedReward",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
