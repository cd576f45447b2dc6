from __future__ import annotations

import math

import pytest
import torch

from egrpo.policy import inverse_cdf, sample_uniforms
from egrpo.policy.drawing import Drawing, cut, draw

BELOW_ONE = 1 - 2**-53
INF = float("inf")


@pytest.mark.parametrize(
    "probs, u, token",
    [
        ([0.25, 0.25, 0.5], 0.0, 0),
        ([0.25, 0.25, 0.5], 0.2499, 0),
        ([0.25, 0.25, 0.5], 0.25, 1),  # the first index above, not at
        ([0.25, 0.25, 0.5], 0.4999, 1),
        ([0.25, 0.25, 0.5], 0.5, 2),
        ([0.25, 0.25, 0.5], BELOW_ONE, 2),
        ([0.0, 1.0, 0.0], 0.0, 1),
        ([0.0, 1.0, 0.0], BELOW_ONE, 1),
        ([0.5, 0.0, 0.0, 0.5, 0.0], 0.5, 3),
        ([0.5, 0.0, 0.0, 0.5, 0.0], BELOW_ONE, 3),
    ],
)
def test_inverse_cdf_literal(probs: list[float], u: float, token: int):
    drawn = inverse_cdf(torch.tensor([probs]).log(), torch.tensor([u], dtype=torch.float64))
    assert drawn.tolist() == [token] and drawn.dtype == torch.int64


def test_impossible_tokens_are_never_drawn_by_rounding():
    torch.manual_seed(0)
    logits = torch.randn(64, 5000)
    logits[:, 2500:] = -INF
    logits[:, 0] = -INF
    for u in (0.0, BELOW_ONE):
        tokens = inverse_cdf(logits, torch.full((64,), u, dtype=torch.float64))
        assert ((tokens > 0) & (tokens < 2500)).all()


def test_temperature_divides_the_logits():
    logits = torch.tensor([[0.0, 2.0]])  # at temperature 2: p0 = 1 / (1 + e) = 0.26894
    for u, token in ((0.268, 0), (0.270, 1)):
        assert inverse_cdf(logits, torch.tensor([u]), temperature=2.0).tolist() == [token]


def test_frequencies():
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3])
    u = sample_uniforms([(0, 0, "x", i) for i in range(2000)], 10).flatten()
    drawn = inverse_cdf(probs.log().expand(20000, 4), u)
    found = torch.bincount(drawn, minlength=4) / 20000
    assert found[1] == 0
    torch.testing.assert_close(found, probs, atol=0.012, rtol=0)  # 3.5 standard deviations of 0.6


def test_draw_records_conditional_logits_at_the_temperature():
    conditional = torch.tensor([[0.0, math.log(3) * 2]])  # at temperature 2: 1/4, 3/4
    free = torch.tensor([[0.0, math.log(3) * 2 + 1]])  # guided, c + (c - u): 0 and less
    tokens, logps, entropy = draw(torch.cat([conditional, free]), None, Drawing(2.0, greedy=True, cfg_weight=4))
    assert tokens.tolist() == [0]
    assert logps.item() == pytest.approx(math.log(0.25), abs=1e-6)
    assert entropy.item() == pytest.approx(0.8112781, abs=1e-6)  # bits of (1/4, 3/4), log base V = 2


def test_draw_with_impossible_tokens_has_finite_entropy():
    _, logps, entropy = draw(torch.tensor([[0.0, 0.0, -INF, -INF]]), torch.tensor([0.7]), Drawing())
    assert logps.item() == pytest.approx(-math.log(2)) and entropy.item() == pytest.approx(0.5)


def test_cuts_literal():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]).log()
    assert cut(logits, None, None) is None and cut(logits, 4, 1.0) is None
    assert cut(logits, 2, None).tolist() == [[False, True, False, True], [True] * 4]
    assert cut(logits[:1], None, 0.5).tolist() == [[False, True, False, True]]
    assert cut(logits[:1], None, 0.39).tolist() == [[False, True, False, False]]
    assert cut(logits[:1], 3, 0.8).tolist() == [[False, True, True, True]]  # of the three: 4/9, 3/9, 2/9


def test_cuts_change_what_is_drawn_and_not_what_is_recorded():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    u = torch.tensor([0.05])
    assert draw(logits, u, Drawing())[0].tolist() == [0]
    tokens, logps, _ = draw(logits, u, Drawing(top_k=2))
    assert tokens.tolist() == [1] and logps.item() == pytest.approx(math.log(0.4), abs=1e-6)
    with pytest.raises(ValueError, match=r"rollout\.top_p=1\.5: give a share"):
        Drawing(top_p=1.5)


def test_streams_are_set_by_their_key():
    key = (3, 5, "a cat", 1)
    numbers = sample_uniforms([key, (3, 5, "a cat", 2), (3, 6, "a cat", 1), (4, 5, "a cat", 1), (3, 5, "cat", 1)], 8)
    assert numbers.dtype == torch.float64 and numbers.shape == (5, 8)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert torch.unique(numbers[:, 0]).numel() == 5
    torch.testing.assert_close(sample_uniforms([key], 20)[0, :8], numbers[0], atol=0, rtol=0)
    assert not torch.equal(sample_uniforms([key], 8, domain="text"), numbers[:1])


def test_streams_are_the_same_on_every_machine():
    numbers = sample_uniforms([(1, 2, "ein Käfer {x}", 3)], 3)[0].tolist()
    assert numbers == pytest.approx(PINNED, abs=1e-15)


PINNED = [0.3300554454497171, 0.10938117972365602, 0.6831937074437342]
