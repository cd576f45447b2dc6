"""The terms of the bonus study's gradients: literal values, and expectations over all actions of a small policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from egrpo.types import TokenScores
from experiments.bonus.gradient import TERMS, compare, token_terms


def scores(logps: Tensor, entropy: Tensor) -> TokenScores:
    return TokenScores(logps, entropy, torch.ones_like(entropy).bool(), torch.ones_like(entropy).bool())


def of(terms: Tensor, name: str) -> list[float]:
    return terms[TERMS.index(name)].flatten().tolist()


def test_terms_of_four_tokens() -> None:
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.9]])
    terms = token_terms(scores(torch.full((1, 4), -0.5), entropy), torch.tensor([-1.0]), torch.full((1, 4), 2.0))
    assert of(terms, "advantage") == [-1.0, -1.0, -1.0, -1.0]
    lost, gained = of(terms, "excluded"), of(terms, "bonus released")
    assert lost == [0.0, 0.0, 0.0, 0.0]  # a fifth of four tokens is none
    assert gained[3] == pytest.approx(0.27) and gained[0] == gained[1] == 0.0
    assert of(terms, "bonus scale 3 cap 1")[3] == pytest.approx(1.0)  # capped at |A|
    assert of(terms, "entropy") == pytest.approx([0.3, 0.1, -0.1, -1.3])  # 0.5 - 2 H


def test_a_bonus_moves_nothing_on_average_and_surprise_raises_entropy() -> None:
    """Over all actions, by their probabilities: the gradient of the bonus is 0, that of `entropy` is entropy's."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum()
    size = float(np.log(4))
    # A sequence an action: the choice, then three certain tokens, so that the choice is in the high band.
    certain = torch.zeros(4, 3)
    recorded = torch.cat([(entropy / size).detach().expand(4, 1), certain], dim=1)
    chosen = torch.cat([logp.detach().unsqueeze(1), certain], dim=1)
    terms = token_terms(scores(chosen, recorded), torch.full((4,), 5.0), torch.full((4, 4), size))
    for name in ("bonus released", "entropy"):
        weights = logp.exp().detach() * terms[TERMS.index(name)][:, 0]
        (found,) = torch.autograd.grad((weights * logp).sum(), logits, retain_graph=True)
        (own,) = torch.autograd.grad(entropy, logits, retain_graph=True)
        expected = torch.zeros(4, dtype=torch.float64) if name.startswith("bonus") else own
        assert weights.abs().max() > 0.01
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_signal_is_what_batches_have_in_common() -> None:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(200, len(TERMS), 50))  # noise of squared norm 50
    found[:, TERMS.index("advantage")] += 1.0  # and a mean of squared norm 50
    rows = compare(found).set_index("term")
    assert rows.loc["advantage", "signal"] == pytest.approx(0.5, abs=0.03)
    assert rows.loc["advantage", "along advantages"] == pytest.approx(1.0)
    assert rows.loc["entropy", "signal low"] < 0 < rows.loc["entropy", "signal high"]
    assert rows.loc["entropy", "norm"] == pytest.approx(np.sqrt(50), rel=0.02)
