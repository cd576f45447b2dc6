from __future__ import annotations

import pytest
import torch

from egrpo.algorithm import group_advantages
from egrpo.algorithm.mixing import (
    centred_in_groups,
    comparable_in_groups,
    in_whole_groups,
    mix_rewards,
    zscores_in_groups,
)

VALUES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, float("nan")], [5.0, 40.0]])
MASK = ~VALUES.isnan()
ALL = torch.ones(4, 2, dtype=torch.bool)


def test_a_plain_weighted_sum():
    whole = VALUES.nan_to_num(30.0)
    torch.testing.assert_close(mix_rewards(whole, torch.tensor([2.0, -0.1])), torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert torch.equal(mix_rewards(whole, torch.ones(2), ALL), mix_rewards(whole, torch.ones(2)))


def test_weights_are_scaled_up_where_a_reward_does_not_count():
    mixed = mix_rewards(VALUES, torch.tensor([0.5, 0.25]), MASK)
    # Row 2 has the first reward alone, and its weight 0.5 grows to 0.75.
    torch.testing.assert_close(mixed, torch.tensor([3.0, 6.0, 2.25, 12.5]))


def test_negative_weights_keep_their_sign():
    mixed = mix_rewards(VALUES, torch.tensor([-1.0, 1.0]), MASK)
    torch.testing.assert_close(mixed, torch.tensor([9.0, 18.0, -6.0, 35.0]))


def test_a_sequence_without_a_weighted_reward_is_no_number():
    assert mix_rewards(VALUES, torch.tensor([0.0, 1.0]), MASK).isnan().tolist() == [False, False, True, False]


def test_deviations_and_standard_deviations_by_hand():
    deviations, std = centred_in_groups(VALUES, MASK, 2)
    torch.testing.assert_close(deviations, torch.tensor([[-0.5, -5.0], [0.5, 5.0], [-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(std, torch.tensor([[0.5**0.5, 50**0.5], [2**0.5, 0.0]]))


def test_a_group_none_of_whose_values_counts():
    deviations, std = centred_in_groups(torch.full((2, 1), torch.nan), torch.zeros(2, 1, dtype=torch.bool), 2)
    assert deviations.tolist() == [[0.0], [0.0]] and std.tolist() == [[0.0]]


@pytest.mark.parametrize("size", [2, 4])
def test_a_z_score_of_one_reward_is_its_group_advantage(size):
    torch.manual_seed(0)
    values = torch.rand(8, 3) * torch.tensor([1.0, 1e-3, 1e3])
    scores = zscores_in_groups(values, torch.ones(8, 3, dtype=torch.bool), size)
    for column in range(3):
        torch.testing.assert_close(scores[:, column], group_advantages(values[:, column], size))


def test_equal_rewards_have_exactly_no_z_score():
    values = torch.full((6, 1), 0.1)
    assert torch.equal(zscores_in_groups(values, torch.ones(6, 1, dtype=torch.bool), 3), torch.zeros(6, 1))


def test_z_scores_leave_out_what_does_not_count():
    values = torch.tensor([[1.0], [1e9], [3.0], [torch.nan]])
    mask = torch.tensor([[True], [False], [True], [False]])
    torch.testing.assert_close(
        zscores_in_groups(values, mask, 4, eps=0.0), torch.tensor([[-(0.5**0.5)], [0.0], [0.5**0.5], [0.0]])
    )


def test_a_missing_reward_says_nothing_about_its_sample():
    # Eight equal samples, the second reward missing for one of them: nothing tells them apart.
    values = torch.tensor([[0.3, 0.9]] * 8)
    mask = torch.ones(8, 2, dtype=torch.bool)
    values[5, 1], mask[5, 1] = float("nan"), False
    weights = torch.ones(2)
    assert group_advantages(comparable_in_groups(values, weights, mask, 8), 8).tolist() == [0.0] * 8
    # Group of the first two rows of VALUES whole; in the second the missing value lies at its group's mean, 40.
    mixed = comparable_in_groups(VALUES, torch.tensor([1.0, 0.5]), MASK, 2)
    assert mixed.tolist() == [6.0, 12.0, 23.0, 25.0]


def test_where_nothing_is_missing_sums_are_the_plain_ones_to_the_last_digit():
    values, weights = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, -2.0, 3.0])
    mask = torch.ones(64, 4, dtype=torch.bool)
    assert torch.equal(comparable_in_groups(values, weights, mask, 8), values @ weights)
    mask[3, 0] = False  # of the first group alone
    assert torch.equal(comparable_in_groups(values, weights, mask, 8)[8:], (values @ weights)[8:])


def test_deviations_are_summed_within_the_group():
    values = torch.tensor([[1.0, 4.0], [2.0, float("nan")], [6.0, 8.0], [3.0, 6.0]])
    mixed = comparable_in_groups(values, torch.tensor([1.0, 2.0]), ~values.isnan(), 4)
    deviations = torch.tensor([-2.0 - 4.0, -1.0, 3.0 + 4.0, 0.0])  # means 3 and, over three values, 6
    torch.testing.assert_close(mixed - mixed.mean(), deviations)


def test_a_sample_without_any_reward_lies_at_the_mean():
    values = torch.tensor([[1.0], [2.0], [float("nan")], [3.0]])
    advantages = group_advantages(comparable_in_groups(values, torch.ones(1), ~values.isnan(), 4), 4)
    assert advantages[2] == 0 and advantages[0] == -advantages[3] < 0
    nothing = comparable_in_groups(torch.full((4, 1), torch.nan), torch.ones(1), torch.zeros(4, 1, dtype=torch.bool), 4)
    assert nothing.tolist() == [0.0] * 4


def test_a_column_is_masked_for_whole_groups():
    mask = torch.tensor([[True, True], [False, False], [True, True], [True, True]])
    whole = in_whole_groups(mask, torch.tensor([False, True]), 2)
    assert whole.tolist() == [[True, False], [False, False], [True, True], [True, True]]
