"""Rewards: a protocol, an ensemble, one file a reward."""

from egrpo.rewards.base import Reward, RewardError
from egrpo.rewards.ensemble import RewardEnsemble, WeightedReward

__all__ = ["Reward", "RewardEnsemble", "RewardError", "WeightedReward"]
