"""A text head that says what it is told."""

from __future__ import annotations

import pytest
import torch

from egrpo.policy.decoding import CachedDecoder


class Scripted(torch.nn.Module):
    """Makes row i say script[i][t] at step t, also when rows that have ended are left out."""

    def __init__(self, script: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.script, self.t = torch.tensor(script), 0
        self.rows_run: list[int] = []
        keep = CachedDecoder.keep

        def told(decoder: CachedDecoder, rows: torch.Tensor) -> None:
            self.script = self.script[rows]
            keep(decoder, rows)

        monkeypatch.setattr(CachedDecoder, "keep", told)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.t += 1
        self.rows_run.append(len(hidden))
        return torch.nn.functional.one_hot(self.script[:, self.t - 1], 300) * 100.0
