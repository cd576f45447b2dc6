"""A reward that raises, returns NaN, a wrong length, or fails in part: the rule, and what is left to look at."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from egrpo.algorithm import group_advantages
from egrpo.rewards import PartialRewardError, RewardEnsemble, RewardError, WeightedReward
from egrpo.training.metrics import reward_metrics
from egrpo.types import PromptRecord

IMAGES = [Image.new("RGB", (4, 4), (grey, grey, grey)) for grey in (10, 20, 30, 40)]
RECORDS = [PromptRecord(prompt, ["cat"]) for prompt in ("a", "b", "c", "d")]


def fine(images, records):
    return torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])


def raising(images, records):
    """Cannot judge the prompt "b", and says so as an exception."""
    if any(record.prompt == "b" for record in records):
        raise ZeroDivisionError("no box")
    return fine(images, records)


def no_number(images, records):
    return torch.where(fine(images, records) == 20, torch.nan, fine(images, records))


def too_short(images, records):
    """One value too few for a batch, right for a single image unless its prompt is "b"."""
    values = fine(images, records)
    return values[:-1] if len(images) > 1 or records[0].prompt == "b" else values


def in_part(images, records):
    raise PartialRewardError(no_number(images, records), {1: "the server said no"})


FAULTS = {
    raising: (r"'odd' failed on 4 images: ZeroDivisionError: no box", 4),
    no_number: (r"'odd' returned nan for 1 of 4 images, the first for the prompt 'b'", 1),
    too_short: (r"'odd' returned shape \(3,\) for 4 images", 4),
    in_part: (r"'odd' gave no value \(the server said no\) for 1 of 4 images.*'b'", 1),
}


@pytest.mark.parametrize("reward, message, saved", [(f, *told) for f, told in FAULTS.items()])
def test_a_failure_stops_the_run_and_keeps_prompts_and_images(reward, message, saved, tmp_path):
    ensemble = RewardEnsemble({"fine": WeightedReward(fine), "odd": WeightedReward(reward)}, failures=tmp_path)
    with pytest.raises(RewardError, match=message) as caught:
        ensemble(IMAGES, RECORDS)
    folder = tmp_path / "odd"
    assert str(folder) in str(caught.value)
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == saved
    row = int(pictures[0].stem)
    assert np.array_equal(np.asarray(Image.open(pictures[0])), np.asarray(IMAGES[row]))
    assert json.loads(pictures[0].with_suffix(".json").read_text()) == RECORDS[row].to_dict()
    told = (folder / "error.txt").read_text()
    assert "'odd'" in told and ("Traceback" in told) == (saved == 4)


@pytest.mark.parametrize("reward", FAULTS)
def test_drop_masks_one_reward_for_one_image_and_counts_it(reward, tmp_path):
    rewards = {"fine": WeightedReward(fine, 0.5), "odd": WeightedReward(reward, 1.0, on_error="drop")}
    table = RewardEnsemble(rewards, failures=tmp_path)(IMAGES, RECORDS)
    assert table.mask.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert table.values[:, 1].isnan().tolist() == [False, True, False, False]
    # Where "odd" is dropped, the weight of "fine" grows from 0.5 to 1.5.
    torch.testing.assert_close(table.total, torch.tensor([15.0, 30.0, 45.0, 60.0]))
    metrics = reward_metrics(table, 2)
    assert metrics["reward_dropped/odd"] == 0.25 and metrics["reward_dropped/fine"] == 0.0
    assert metrics["reward/odd"] == pytest.approx((10 + 30 + 40) / 3) and metrics["reward/fine"] == 25.0
    assert not list(tmp_path.iterdir())


def test_a_reward_that_fails_for_all_is_dropped_for_all():
    def broken(images, records):
        raise OSError("out of order")

    rewards = {"fine": WeightedReward(fine), "odd": WeightedReward(broken, on_error="drop")}
    table = RewardEnsemble(rewards)(IMAGES, RECORDS)
    assert not table.mask[:, 1].any() and reward_metrics(table, 2)["reward_dropped/odd"] == 1.0
    assert "reward/odd" not in reward_metrics(table, 2)
    torch.testing.assert_close(table.total, 2 * fine(IMAGES, RECORDS))


@pytest.mark.parametrize("others", [{}, {"fine": WeightedReward(fine, 0.0)}])
def test_a_sole_reward_that_is_dropped_leaves_the_image_out_and_the_run_going(others, caplog):
    ensemble = RewardEnsemble({**others, "odd": WeightedReward(no_number, on_error="drop")})
    table = ensemble(IMAGES, RECORDS)
    assert table.judged.tolist() == [True, False, True, True] and table.total.isnan().tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert "no reward is left for 1 of 4 images, the first for the prompt 'b'" in caplog.text
    advantages = group_advantages(ensemble.mix(table, 4), 4)
    # Deviations of 10, 30 and 40 from their mean; the image without a reward is neither good nor bad.
    deviations = torch.tensor([-50 / 3, 0.0, 10 / 3, 40 / 3])
    torch.testing.assert_close(advantages, deviations / (deviations.std() + 1e-4), atol=1e-5, rtol=1e-5)


def test_a_step_without_any_reward_stops_the_run():
    def broken(images, records):
        raise OSError("out of order")

    ensemble = RewardEnsemble({"odd": WeightedReward(broken, on_error="drop")})
    with pytest.raises(RewardError, match=r"no reward is left for any of the 4 images of this step.*on_error=stop"):
        ensemble.mix(ensemble(IMAGES, RECORDS), 2)


@pytest.mark.parametrize("on_error", ["drop", "drop_group"])
def test_equal_images_get_no_advantage_from_a_dropped_reward(on_error):
    images, records = [IMAGES[1]] * 8, [PromptRecord("b" if row == 5 else "a") for row in range(8)]

    def odd(images, records):
        return torch.tensor([torch.nan if record.prompt == "b" else 0.9 for record in records])

    ensemble = RewardEnsemble({"fine": WeightedReward(fine), "odd": WeightedReward(odd, on_error=on_error)})
    table = ensemble(images, records)
    assert table.mask[:, 1].tolist() == [row != 5 for row in range(8)]
    assert group_advantages(ensemble.mix(table, 8), 8).tolist() == [0.0] * 8


def test_drop_group_compares_the_whole_group_by_the_other_rewards():
    rewards = {"fine": WeightedReward(fine, 2.0), "odd": WeightedReward(no_number, on_error="drop_group")}
    ensemble = RewardEnsemble(rewards)
    mixed = ensemble.mix(ensemble(IMAGES, RECORDS), 2)
    assert mixed.tolist() == [20.0, 40.0, 60.0 + 30.0, 80.0 + 40.0]  # of the first pair twice "fine" alone


@pytest.mark.parametrize(
    "values, reasons, fault",
    [
        (torch.zeros(3), {1: "no"}, "returned shape (3,) for 4 images"),
        ([0.0, 1.0, 2.0, float("nan")], {}, "returned nan"),
        (torch.zeros(4), {9: "no"}, "named failures in rows [9] of 4 images"),
        (torch.zeros(4), {-1: "no"}, "named failures in rows [-1] of 4 images"),
    ],
)
def test_a_partial_failure_is_checked_like_any_answer(values, reasons, fault, tmp_path):
    def partial(images, records):
        if len(images) == 4:
            raise PartialRewardError(values, reasons)
        return fine(images, records)

    with pytest.raises(RewardError, match=re.escape(fault)):
        RewardEnsemble({"odd": WeightedReward(partial)}, failures=tmp_path)(IMAGES, RECORDS)
    assert list((tmp_path / "odd").glob("*.png"))
    rewards = {"fine": WeightedReward(fine), "odd": WeightedReward(partial, on_error="drop")}
    table = RewardEnsemble(rewards)(IMAGES, RECORDS)
    assert table.mask[:, 1].tolist() == ([True, True, True, False] if not reasons else [True] * 4)


def test_what_is_dropped_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        RewardEnsemble({"fine": WeightedReward(fine), "odd": WeightedReward(no_number, on_error="drop")})(
            IMAGES, RECORDS
        )
    assert "'odd' is dropped for 1 of 4 images, the first for the prompt 'b': returned nan" in caplog.text


def test_rewards_see_float32_whatever_the_step_runs_in():
    seen = []

    def reward(images, records):
        seen.append(torch.zeros(1).dtype)
        return torch.full((len(images),), 0.123456789)

    torch.set_default_dtype(torch.bfloat16)
    try:
        table = RewardEnsemble({"odd": WeightedReward(reward)})(IMAGES, RECORDS)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == [torch.float32] and table.values[0, 0].item() == pytest.approx(0.123456789, abs=1e-8)


@pytest.mark.parametrize("told, fault", [([True] * 3, "returned shape (3,)"), (None, "failed: ")])
def test_a_wrong_applies_names_its_reward(told, fault):
    class Odd:
        def __call__(self, images, records):
            return fine(images, records)

        def applies(self, records):
            return told

    with pytest.raises(RewardError, match=re.escape("applies() of reward 'odd' " + fault)):
        RewardEnsemble({"odd": WeightedReward(Odd())})(IMAGES, RECORDS)


def test_other_choices_are_refused():
    with pytest.raises(ValueError, match=r"on_error='ignore'.*stop or drop"):
        WeightedReward(fine, on_error="ignore")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match="no box"):
        RewardEnsemble({"odd": WeightedReward(raising)})(IMAGES, RECORDS)
    assert not list(tmp_path.iterdir())
