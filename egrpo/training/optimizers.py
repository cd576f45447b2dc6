"""Optimizers for weights of low precision, and the learning rate of a run that goes on."""

from __future__ import annotations

from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):
    """AdamW that keeps a float32 master copy of every bfloat16 or float16 weight, and its states in float32.

    At a learning rate of 1e-6 an update of a bfloat16 weight rounds to nothing; on the master copy it adds up. The
    weights themselves are the masters, rounded. DeepSpeed's bf16 mode does the same, and with it the published runs.
    Arguments: those of `torch.optim.AdamW`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One update. A closure, if any, is run first, with the weights in their own type."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        swapped = []
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.grad is None or p.dtype not in (torch.bfloat16, torch.float16):
                continue
            weight, grad = p.data, p.grad
            # Taken out of the state for AdamW, which takes a parameter with a state for one that it has stepped.
            master = self.state[p].pop("master", None)
            p.grad = None
            p.data = weight.float() if master is None else master
            p.grad = grad.float()
            swapped.append((p, weight, grad))
        super().step()
        for p, weight, grad in swapped:
            master = p.data
            p.grad = None
            p.data = weight.copy_(master)
            p.grad = grad
            self.state[p]["master"] = master
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores states in float32: torch casts them to the type of the weight."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(indices, parameters, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name != "step" and torch.is_tensor(value):
                    self.state[p][name] = value.to(p.device, torch.float32, copy=True)


def go_on_with_schedule(scheduler: Any) -> None:
    """Gives a resumed run the learning rate of its own settings at the schedule's position.

    A checkpoint brings the rate that it was saved with, whatever the settings say now; an optimizer that begins anew
    has the rate of the schedule's start.
    """
    optimizer = scheduler.optimizer
    wanted = optimizer.defaults["lr"]
    bases = getattr(scheduler, "base_lrs", [wanted] * len(optimizer.param_groups))
    rates = [lr * (wanted / base) if base else lr for lr, base in zip(scheduler.get_last_lr(), bases, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"], group["initial_lr"] = rate, wanted
    scheduler.base_lrs, scheduler._last_lr = [wanted] * len(rates), rates
