from __future__ import annotations

import pytest
import torch
from PIL import Image

from egrpo.rewards import Reward, RewardEnsemble, RewardError, WeightedReward
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


@pytest.mark.parametrize("rewards", [{}, {"bright": WeightedReward(brightness, 0.0)}])
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


def test_a_plain_function_is_a_reward():
    assert isinstance(brightness, Reward)
