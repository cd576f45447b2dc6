"""Muon on the matrices inside layers, AdamW on the rest, a short warm-up and linear decay: cheap for tiny networks."""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Both optimizers and their schedule behind one `step`.

    Args:
        modules: what is trained; matrices whose name holds "layer" go to Muon.
        steps: of the whole training; the rates fall to 0 at its end.
        muon_lr, adamw_lr: highest learning rates.
        warm_up: steps until they are reached.
    """

    def __init__(self, modules: list[nn.Module], *, steps: int, muon_lr: float, adamw_lr: float, warm_up: int = 20):
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "layer" in name]
        rest = [p for name, p in named if not (p.ndim == 2 and "layer" in name)]
        self.parameters = matrices + rest
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1, (i + 1) / warm_up, 1 - i / steps))
            for o in self.optimizers
        ]

    def step(self, loss: torch.Tensor) -> None:
        """One update against `loss`, gradients clipped to a norm of 1."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
