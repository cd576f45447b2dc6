from __future__ import annotations

import torch

from egrpo.rewards.normalization import GroupZScore, Raw, RunningScale

NAMES = ["wide", "narrow"]
VALUES = torch.tensor([[0.0, 0.1], [10.0, 0.3], [4.0, 0.5], [4.0, 0.5]])
ALL = torch.ones(4, 2, dtype=torch.bool)


def test_raw_rewards_stay_as_they_are():
    assert torch.equal(Raw()(NAMES, VALUES, ALL, 2), VALUES)


def test_z_scores_make_ranges_equal_and_quiet_groups_silent():
    scores = GroupZScore(eps=0.0)(NAMES, VALUES[:2], ALL[:2], 2)
    torch.testing.assert_close(scores, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) * 0.5**0.5)
    assert GroupZScore()(NAMES, VALUES, ALL, 2)[2:].abs().max() == 0


def test_the_running_scale_is_the_mean_variance_within_groups():
    scale = RunningScale(decay=0.5)
    first = scale(NAMES, VALUES, ALL, 2)
    # Variances within the two groups: 50 and 0, mean 25; 0.02 and 0, mean 0.01.
    torch.testing.assert_close(first, VALUES / (torch.tensor([5.0, 0.1]) + 1e-4))
    second = scale(NAMES, 3 * VALUES, ALL, 2)
    # Bias-corrected mean of 25 and 225 at decay 0.5: (0.25 x 25 + 0.5 x 225) / 0.75.
    torch.testing.assert_close(second[:, 0], 3 * VALUES[:, 0] / ((118.75 / 0.75) ** 0.5 + 1e-4))


def test_rounding_does_not_become_a_signal():
    values = torch.tensor([[1.0], [1 - 6e-8], [1.0], [1.0]])
    scaled = RunningScale()(["saturated"], values, ALL[:, :1], 4)
    assert scaled.std() < 1e-2


def test_the_running_scale_goes_on_after_a_resume():
    scale, other = RunningScale(), RunningScale()
    scale(NAMES, VALUES, ALL, 2)
    other.load_state_dict(scale.state_dict())
    assert torch.equal(scale(NAMES, 2 * VALUES, ALL, 2), other(NAMES, 2 * VALUES, ALL, 2))
    assert not torch.equal(RunningScale()(NAMES, 2 * VALUES, ALL, 2), other(NAMES, 2 * VALUES, ALL, 2))


def test_dropped_values_do_not_move_the_scale():
    mask = ALL.clone()
    mask[1, 0] = False
    spoiled = VALUES.masked_fill(~mask, torch.nan)
    scaled = RunningScale()(NAMES, spoiled, mask, 2)
    assert scaled[:, 0].isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(scaled[:, 1], VALUES[:, 1] / (0.1 + 1e-4))
