"""16-mixed: the loss is scaled before the backward pass, and the gradient is clipped as if it were not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from egrpo.training.engines import Engine


class Optimizer:
    """Lightning's optimizer around torch's, stepping as its 16-mixed plugin does."""

    def __init__(self, weight: nn.Parameter, scaler: torch.amp.GradScaler) -> None:
        self.optimizer, self.scaler = torch.optim.SGD([weight], lr=1.0), scaler
        self.param_groups = self.optimizer.param_groups

    def step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


def engine(scale: float) -> tuple[Engine, nn.Parameter, torch.amp.GradScaler]:
    weight = nn.Parameter(torch.zeros(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = Optimizer(weight, scaler)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    return Engine(SimpleNamespace(_trainer=trainer, optimizers=lambda: optimizer)), weight, scaler


@pytest.mark.parametrize("gradient, norm, step", [([3.0, 4.0], 5.0, [0.6, 0.8]), ([0.3, 0.4], 0.5, [0.3, 0.4])])
def test_the_gradient_is_clipped_as_without_the_scale(gradient, norm, step):
    found, weight, scaler = engine(1024.0)
    scaler.scale((weight * torch.tensor(gradient)).sum()).backward()
    assert found.apply(max_norm=1.0).item() == pytest.approx(norm, rel=1e-6)
    assert weight.detach().tolist() == pytest.approx([-value for value in step], rel=1e-5)
    assert not found.lowered_scale


def test_an_overflow_halves_the_scale_and_takes_no_step():
    found, weight, scaler = engine(1024.0)
    scaler.scale((weight * torch.tensor([1e38, 1e38])).sum()).backward()
    norm = found.apply(max_norm=1.0)
    assert norm is not None and not norm.isfinite() and found.lowered_scale
    assert scaler.get_scale() == 512 and weight.detach().tolist() == [0, 0] and weight.grad is None


def test_a_gradient_that_overflows_without_a_scale_is_an_error_of_the_run():
    found, weight, _ = engine(1.0)
    weight.grad = torch.tensor([float("nan"), 1.0])
    found.apply(max_norm=1.0)
    assert not found.lowered_scale
