"""What ranks put together: plans of unequal length side by side."""

from __future__ import annotations

import math

import pytest
import torch

from egrpo.training.whole_batch import own_tokens, whole_rollout
from egrpo.types import Rollout, Segment


def rollout(plan: int) -> Rollout:
    """One sample with a plan of `plan` tokens and an image of two."""

    def segment(width: int, entropy: float) -> Segment:
        tokens = torch.zeros(1, width, dtype=torch.long)
        values = torch.full((1, width), entropy)
        return Segment(tokens, tokens == 0, tokens, tokens == 0, values, values)

    pixels = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    return Rollout(["a"], ["b"], torch.zeros(1).bool(), segment(plan, 0.5), segment(2, 0.25), pixels)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_columns_that_a_rank_lacks(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    short, long = rollout(1), rollout(3)
    monkeypatch.setattr("egrpo.distributed.world_size", lambda: 2)
    monkeypatch.setattr("egrpo.distributed.rank", lambda: 0)
    sent: list[Rollout] = []

    def gather(own: Rollout) -> list[Rollout]:
        sent.append(own)
        return [own, *sent[:-1]]

    monkeypatch.setattr("egrpo.distributed.gather", gather)
    whole_rollout(long)  # what the other rank sends
    whole = whole_rollout(short, entropy_of_padding=value).sampled
    assert whole.mask.tolist() == [[True, False, False, True, True], [True] * 5]
    wanted = torch.tensor([[0.5, value, value, 0.25, 0.25], [0.5, 0.5, 0.5, 0.25, 0.25]])
    torch.testing.assert_close(whole.entropy, wanted, equal_nan=True)
    assert whole.logps[0, 1:3].tolist() == [0.0, 0.0]
    assert own_tokens(whole.logps, short).tolist() == [[0.5, 0.25, 0.25]]
