"""Optimizers for weights of low precision, and the learning rate of a run that goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

BUCKET = 2**28  # elements stepped at once: their gradients in float32 are the only temporary copies


class MasterAdamW(torch.optim.AdamW):
    """AdamW that keeps a float32 master copy of every bfloat16 or float16 weight, and its states in float32.

    At a learning rate of 1e-6 an update of a bfloat16 weight rounds to nothing; on the master copy it adds up. The
    weights themselves are the masters, rounded. DeepSpeed's bf16 mode does the same, and with it the published runs.
    Where weights are divided among ranks (DTensor), so are masters and states, in the same way.
    Arguments: those of `torch.optim.AdamW`; `amsgrad`, `capturable` and `differentiable` apply to float32 weights only.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One update. A closure, if any, is run first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        low: list[tuple[torch.nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            own = [p for p in group["params"] if p.grad is not None and p.dtype in (torch.bfloat16, torch.float16)]
            for bucket in _buckets(own):
                self._step_masters(bucket, group)
            low += [(p, p.grad) for p in own if p.grad is not None]
        for p, _ in low:  # AdamW passes over parameters without a gradient
            p.grad = None
        super().step()
        for p, grad in low:
            p.grad = grad
        return loss

    def _step_masters(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        """Steps this rank's parts of some masters, and rounds them into the weights."""
        for p in parameters:
            state = self.state[p]
            if "exp_avg" not in state:
                zeros = torch.zeros_like(p, dtype=torch.float32)
                step = torch.zeros((), dtype=torch.float32, device=local(p).device if group["fused"] else "cpu")
                state |= {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
            if "master" not in state:  # of a checkpoint that another optimizer wrote
                state["master"] = p.detach().float()
        states = [self.state[p] for p in parameters]
        masters = [local(state["master"]) for state in states]
        adamw(
            masters,
            [local(p.grad).float() for p in parameters if p.grad is not None],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        torch._foreach_copy_([local(p) for p in parameters], masters)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores states in float32: torch casts them to the type of the weight."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(indices, parameters, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name != "step" and torch.is_tensor(value):
                    self.state[p][name] = value.to(p.device, torch.float32, copy=True)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a divided tensor, by reference; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _buckets(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """In order, at most `BUCKET` elements of this rank together, or one parameter alone."""
    buckets: list[list[torch.nn.Parameter]] = []
    filled = 0
    for p in parameters:
        size = local(p).numel()
        if not buckets or filled + size > BUCKET:
            buckets.append([])
            filled = 0
        buckets[-1].append(p)
        filled += size
    return buckets


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
