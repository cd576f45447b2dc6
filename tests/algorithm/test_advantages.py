import pytest
import torch

from egrpo.algorithm import group_advantages


def test_hand_worked_groups():
    # Means 2 and 20, unbiased standard deviations 1 and 10.
    advantages = group_advantages(torch.tensor([1.0, 2.0, 3.0, 30.0, 20.0, 10.0], dtype=torch.float64), 3, eps=0.0)
    torch.testing.assert_close(advantages.tolist(), [-1.0, 0.0, 1.0, 1.0, 0.0, -1.0])


def test_eps_is_added_to_the_unbiased_standard_deviation():
    advantages = group_advantages(torch.tensor([0.0, 2.0], dtype=torch.float64), 2, eps=0.5)
    assert advantages.tolist() == pytest.approx([-1 / (2**0.5 + 0.5), 1 / (2**0.5 + 0.5)], abs=1e-12)
    default = group_advantages(torch.tensor([0.0, 2.0], dtype=torch.float64), 2)
    assert default[1].item() == pytest.approx(1 / (2**0.5 + 1e-4), abs=1e-12)


def test_equal_rewards_give_exact_zeros():
    rewards = torch.rand(50, generator=torch.Generator().manual_seed(0)).repeat_interleave(6)
    assert not (rewards.view(50, 6) - rewards.view(50, 6).mean(1, keepdim=True) == 0).all()  # a plain mean misses
    assert not group_advantages(rewards, 6).any()


def test_shift_of_a_group_changes_nothing_and_groups_do_not_mix():
    rewards = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, 4)
    shifted = rewards + torch.tensor([5.0, -3.0, 100.0]).repeat_interleave(4)
    torch.testing.assert_close(group_advantages(shifted, 4), advantages, atol=1e-11, rtol=0)
    torch.testing.assert_close(group_advantages(rewards[4:8], 4), advantages[4:8], atol=1e-14, rtol=0)


def test_low_precision_and_gradient():
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    exact = group_advantages(rewards, 2)
    assert exact.dtype == torch.float32
    assert not exact.requires_grad
    assert torch.equal(group_advantages(rewards.bfloat16(), 2), exact)
    assert torch.equal(group_advantages(torch.tensor([1, 2, 4, 8]), 2), exact)


@pytest.mark.parametrize(
    ("rewards", "group_size", "message"),
    [
        (torch.zeros(4), 1, "group_size is 1.*2 samples"),
        (torch.zeros(4), 0, "group_size is 0"),
        (torch.zeros(7), 4, "7 rewards do not divide into groups of 4"),
        (torch.zeros(4, 2), 2, r"shape \[N\], got \[4, 2\]"),
        (torch.tensor([0.0, float("nan"), 1.0, float("nan")]), 2, "2 of 4 rewards are NaN"),
        (torch.tensor([0.0, float("inf")]), 2, "1 of 2 rewards are NaN or infinite"),
    ],
)
def test_bad_input_is_named(rewards, group_size, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, group_size)
