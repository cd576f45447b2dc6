import math

import pytest
import torch

from egrpo.algorithm.entropy_policies import budget_balanced, entropy_guided, top_entropy, uniform

INPUTS = (torch.tensor([2.0]), torch.rand(1, 10), torch.ones(1, 10).bool(), torch.arange(10).view(1, 10) > 4)


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        (entropy_guided, {"high_fraction": 1.2}, "high_fraction is 1.2"),
        (entropy_guided, {"low_fraction": -0.1}, "low_fraction is -0.1"),
        (entropy_guided, {"high_fraction": math.nan}, "high_fraction is nan"),
        (entropy_guided, {"high_fraction": 0.9, "low_fraction": 0.2}, r"0.9 \+ low_fraction 0.2 exceeds 1"),
        (entropy_guided, {"segments": ()}, r"segments is \(\)"),
        (entropy_guided, {"segments": ("text", "audio")}, "audio"),
        (entropy_guided, {"segments": "text"}, "segments is 'text'; list one or both"),
        (entropy_guided, {"threshold": "median"}, "threshold is 'median'; choose one of"),
        (entropy_guided, {"bonus_scale": -1.0}, "bonus_scale is -1.0"),
        (entropy_guided, {"bonus_cap": -1.0}, "bonus_cap is -1.0"),
        (budget_balanced, {"kappa": -1.0}, "kappa is -1.0"),
        (budget_balanced, {"high_fraction": 0.9, "low_fraction": 0.2}, "exceeds 1"),
        (top_entropy, {"fraction": 1.1}, "fraction is 1.1"),
    ],
)
def test_bad_settings_are_named(policy, settings, message):
    with pytest.raises(ValueError, match=message):
        policy(*INPUTS, **settings)


def test_shares_that_sum_to_one_in_decimals_are_fine():
    for high, low in ((0.7, 0.3), (0.9, 0.1), (1 - 0.2, 0.2), (1.0, 0.0)):
        entropy_guided(*INPUTS, high_fraction=high, low_fraction=low)


@pytest.mark.parametrize("policy", [uniform, entropy_guided, budget_balanced, top_entropy])
def test_shapes_that_do_not_fit_are_named(policy):
    advantages, entropy, mask, is_image = INPUTS
    with pytest.raises(ValueError, match="one advantage a sequence"):
        policy(torch.zeros(2), entropy, mask, is_image)
    with pytest.raises(ValueError, match="is_image is"):
        policy(advantages, entropy, mask, is_image[:, :4])
