"""Where ZeRO-3 leaves what it does not divide; an accelerator is played by the device "meta"."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn

from egrpo.training.strategies import DeepSpeed

ACCELERATOR = torch.device("meta")


class Divided(LightningModule):
    """An empty placeholder, as DeepSpeed leaves one of a divided weight, and buffers in and out of checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.empty(0))
        self.register_buffer("saved", torch.ones(2))
        self.register_buffer("frequencies", torch.ones(2), persistent=False)


def test_placeholders_and_buffers_are_on_the_device_whenever_zero_3_begins(monkeypatch):
    """DeepSpeed gathers a weight to the device of its placeholder, and Lightning moves placeholders to the CPU when a
    validation ends."""
    seen: list[set[torch.device]] = []

    def setup(self: Any, trainer: Any) -> None:
        module = self.lightning_module
        seen.append({module.device, *(t.device for t in (*module.parameters(), *module.buffers()))})

    monkeypatch.setattr(DeepSpeedStrategy, "setup", setup)
    monkeypatch.setattr(DeepSpeed, "root_device", property(lambda self: ACCELERATOR))
    strategy = DeepSpeed(stage=3)
    strategy._lightning_module = Divided()
    strategy.setup(None)
    strategy._lightning_module = Divided().cpu()  # as Lightning's teardown leaves it
    strategy.setup(None)
    assert seen == [{ACCELERATOR}, {ACCELERATOR}]
