import pytest
import torch

from egrpo.algorithm.thresholds import order_thresholds, quantile_thresholds, top_threshold

# Entropies 0.0, 0.1 .. 0.9 in disorder, so that h[k] = k / 10.
ten = torch.tensor([[0.3, 0.9, 0.0, 0.5, 0.7, 0.1, 0.8, 0.2, 0.6, 0.4]])


def row(values, ranked):
    """Thresholds of `values` with unranked garbage among them."""
    garbage = torch.tensor([[torch.nan, 5.0, -5.0]])
    return torch.cat([garbage, values, garbage], dim=1), torch.cat(
        [torch.zeros(1, 3).bool(), ranked, torch.zeros(1, 3).bool()], dim=1
    )


def pair(function, entropy, high, low, ranked=None, **settings):
    ranked = torch.ones_like(entropy).bool() if ranked is None else ranked
    above, below = function(*row(entropy, ranked), high_fraction=high, low_fraction=low, **settings)
    return above.item(), below.item()


@pytest.mark.parametrize(
    ("n", "high", "low", "text", "image"),
    [
        (10, 0.5, 0.2, (0.5, 0.2), (0.5, 0.2)),
        (5, 0.5, 0.2, (0.3, 0.1), (0.2, 0.1)),  # odd: text takes n - floor(n / 2), images floor(n / 2)
        (4, 0.5, 0.2, (0.2, 0.1), (0.2, 0.0)),  # text has at least one token below
        (3, 0.5, 0.2, (0.2, 0.1), (0.1, 0.0)),
        (2, 0.5, 0.2, (0.1, 0.1), (0.1, 0.0)),
        (1, 0.5, 0.2, (0.0, 0.0), (0.0, 0.0)),
        (10, 0.3, 0.3, (0.7, 0.3), (0.7, 0.3)),  # 0.3 n and (1 - 0.3) n are 3 and 7, not 2.99..
        (10, 0.9, 0.1, (0.1, 0.1), (0.1, 0.1)),
        (10, 1.0, 0.0, (0.0, 0.0), (0.0, 0.0)),
        (10, 0.0, 0.0, (0.9, 0.0), (0.9, 0.0)),  # shares of 0 are empty bands in text too
        (10, 0.0, 1.0, (0.9, 0.9), (0.9, 0.9)),
    ],
)
def test_order_statistics_hand_worked(n, high, low, text, image):
    ranked = ten < (n - 0.5) / 10
    assert pair(order_thresholds, ten, high, low, ranked, at_least_one=True) == pytest.approx(text, abs=1e-6)
    assert pair(order_thresholds, ten, high, low, ranked, at_least_one=False) == pytest.approx(image, abs=1e-6)


def test_quantiles_hand_worked_and_as_torch_has_them():
    assert pair(quantile_thresholds, ten, 0.5, 0.2) == pytest.approx((0.45, 0.18), abs=1e-6)
    assert pair(quantile_thresholds, ten, 0.0, 0.0) == pytest.approx((0.9, 0.0), abs=1e-6)
    assert pair(quantile_thresholds, ten, 1.0, 1.0) == pytest.approx((0.0, 0.9), abs=1e-6)
    g = torch.Generator().manual_seed(0)
    for n in range(1, 40):
        h = torch.rand(1, n, generator=g)
        want = (h.quantile(0.65).item(), h.quantile(0.1).item())
        assert pair(quantile_thresholds, h, 0.35, 0.1) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("n", [1, 6, 11, 16, 21, 576])
def test_a_quantile_at_a_whole_rank_is_that_token_to_the_bit(n):
    h = torch.rand(1, n, generator=torch.Generator().manual_seed(n))
    high, low = quantile_thresholds(h, torch.ones_like(h).bool(), high_fraction=0.6, low_fraction=0.2)
    assert low.item() == h.sort().values[0, (n - 1) // 5].item()
    assert high.item() == h.sort().values[0, 2 * (n - 1) // 5].item()


@pytest.mark.parametrize(
    ("n", "fraction", "want"),
    [(10, 0.2, 0.8), (9, 0.2, 0.8), (4, 0.2, 0.3), (1, 0.2, 0.0), (10, 0.0, 0.9), (10, 1.0, 0.0)],
)
def test_top_threshold_hand_worked(n, fraction, want):
    assert top_threshold(*row(ten, ten < (n - 0.5) / 10), fraction).item() == pytest.approx(want)


def test_rows_without_ranked_positions_disturb_no_other():
    entropy, nothing = ten.expand(2, 10), torch.tensor([[False], [True]]).expand(2, 10)
    high, low = order_thresholds(entropy, nothing, high_fraction=0.5, low_fraction=0.2, at_least_one=True)
    assert (high[1].item(), low[1].item()) == pytest.approx((0.5, 0.2))
    high, low = quantile_thresholds(entropy, nothing, high_fraction=0.5, low_fraction=0.2)
    assert (high[1].item(), low[1].item()) == pytest.approx((0.45, 0.18))
    empty = torch.zeros(3, 0)
    assert top_threshold(empty, empty.bool(), 0.2).shape == (3,)
