from __future__ import annotations

import pytest
import torch
from PIL import Image

from egrpo.algorithm import group_advantages
from egrpo.rewards import Reward, RewardEnsemble, RewardError, WeightedReward
from egrpo.rewards.normalization import GroupZScore
from egrpo.training.metrics import reward_metrics
from egrpo.types import PromptRecord

IMAGES = [Image.new("RGB", (4, 4), (grey, grey, grey)) for grey in (0, 51, 255)]
RECORDS = [PromptRecord("a cat"), PromptRecord("two dogs"), PromptRecord("a hat")]


def brightness(images, records):
    return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])


def length(images, records):
    return torch.tensor([float(len(record.prompt)) for record in records])


def giving(*values):
    return RewardEnsemble({"odd": WeightedReward(lambda images, records: torch.tensor(values))})


def test_columns_are_raw_and_the_total_is_weighted():
    ensemble = RewardEnsemble({"bright": WeightedReward(brightness, 2.0), "long": WeightedReward(length, -0.5)})
    table = ensemble(IMAGES, RECORDS)
    assert table.names == ["bright", "long"] and table.values.dtype == torch.float32
    torch.testing.assert_close(table.values, torch.tensor([[0.0, 5.0], [0.2, 8.0], [1.0, 5.0]]))
    torch.testing.assert_close(table.total, torch.tensor([-2.5, 0.4 - 4.0, 2.0 - 2.5]))


def test_a_weight_of_0_measures_without_counting():
    ensemble = RewardEnsemble({"bright": WeightedReward(brightness), "long": WeightedReward(length, 0.0)})
    table = ensemble(IMAGES, RECORDS)
    torch.testing.assert_close(table.total, torch.tensor([0.0, 0.2, 1.0]))
    assert table.values[:, 1].tolist() == [5.0, 8.0, 5.0]


def test_none_leaves_a_reward_out():
    table = RewardEnsemble({"bright": WeightedReward(brightness), "long": None})(IMAGES, RECORDS)
    assert table.names == ["bright"]


@pytest.mark.parametrize("rewards", [{}, {"bright": WeightedReward(brightness, 0.0)}, {"bright": None}])
def test_an_ensemble_without_signal_is_refused(rewards):
    with pytest.raises(ValueError, match=r"gives no signal.*reward\.NAME\.weight"):
        RewardEnsemble(rewards)


def test_plain_lists_and_integers_are_taken():
    ensemble = RewardEnsemble({"list": WeightedReward(lambda images, records: [1, 2, 3])})
    assert ensemble(IMAGES, RECORDS).total.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers(value: float):
    with pytest.raises(RewardError, match=rf"'odd' returned {value} for 2 of 3 images.*'two dogs'"):
        giving(0.0, value, value)(IMAGES, RECORDS)


@pytest.mark.parametrize("values, shape", [((1.0, 2.0), r"\(2,\)"), (([1.0], [2.0], [3.0]), r"\(3, 1\)")])
def test_a_wrong_length(values, shape: str):
    with pytest.raises(RewardError, match=rf"'odd' returned shape {shape} for 3 images"):
        giving(*values)(IMAGES, RECORDS)


def test_an_exception_keeps_its_cause():
    def failing(images, records):
        raise KeyError("scene")

    ensemble = RewardEnsemble({"bright": WeightedReward(brightness), "odd": WeightedReward(failing, 0.0)})
    with pytest.raises(RewardError, match=r"'odd' failed on 3 images: KeyError: 'scene'") as caught:
        ensemble(IMAGES, RECORDS)
    assert isinstance(caught.value.__cause__, KeyError)


class NeedsNouns:
    """A constant for prompts without cats and hats."""

    def __call__(self, images, records):
        return torch.tensor([0.5 if "at" in record.prompt else 1.0 for record in records])

    def applies(self, records):
        return torch.tensor(["at" in record.prompt for record in records])


def test_the_table_says_where_a_reward_is_a_constant():
    table = RewardEnsemble({"bright": WeightedReward(brightness), "odd": WeightedReward(NeedsNouns())})(IMAGES, RECORDS)
    assert table.applies.tolist() == [[True, True], [True, False], [True, True]]
    assert table.mask.all() and table.told.tolist() == table.applies.tolist()
    metrics = reward_metrics(table, 3)
    assert metrics["reward/odd"] == 0.5 and metrics["reward_std/odd"] == 0.0
    assert metrics["reward_dropped/odd"] == 0.0 and metrics["groups_without_signal/odd"] == 0.0


def test_normalization_is_for_training_and_the_total_stays_raw():
    rewards = {"bright": WeightedReward(brightness), "long": WeightedReward(length)}
    ensemble = RewardEnsemble(rewards, normalization=GroupZScore())
    table = ensemble(IMAGES, RECORDS)
    torch.testing.assert_close(table.total, torch.tensor([5.0, 8.2, 6.0]))
    expected = group_advantages(table.values[:, 0], 3) + group_advantages(table.values[:, 1], 3)
    torch.testing.assert_close(ensemble.mix(table, 3), expected)


def test_metrics_of_each_reward_by_hand():
    table = RewardEnsemble({"long": WeightedReward(length), "same": WeightedReward(lambda i, r: [1.0] * len(i))})(
        [*IMAGES, IMAGES[0]], [*RECORDS, RECORDS[1]]
    )
    metrics = reward_metrics(table, 2)  # lengths 5, 8 and 5, 8
    assert metrics["reward/long"] == 6.5 and metrics["groups_without_signal/same"] == 1.0
    assert metrics["reward_std/long"] == pytest.approx(3**0.5)
    assert metrics["reward_std_within_group/long"] == pytest.approx(4.5**0.5)
    assert metrics["reward_std_within_group/same"] == 0.0 and metrics["groups_without_signal/long"] == 0.0


def test_a_plain_function_is_a_reward():
    assert isinstance(brightness, Reward)
