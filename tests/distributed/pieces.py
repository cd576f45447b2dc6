"""Callbacks that test configurations name: faults of one rank, and looks at a run from within."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from egrpo import distributed
from egrpo.base.errors import UserError


class Fault(Checkpoint):
    """Rank 1 fails at the end of a step, in the first attempt of its job.

    Args:
        step: After which optimizer step.
        killed: By SIGKILL instead of an exception.
    """

    def __init__(self, step: int, killed: bool) -> None:
        self.step, self.killed = step, killed

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if trainer.global_rank == 1 and trainer.global_step == self.step and first:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("rank 1 has had enough")


class NotFinite(Callback):
    """From a step on, rank 1's losses are nan; leaves in a file whether the failed step changed any weight.

    Args:
        step: In optimizer steps.
        file: Written by rank 0: {"error": its class, "unchanged": on all ranks}.
    """

    def __init__(self, step: int, file: str) -> None:
        self.step, self.file = step, Path(file)
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.before = own_weights(pl_module)
            if trainer.global_rank == 1:
                pl_module.engine.loss_scale = float("nan")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        after = own_weights(pl_module)
        same = bool(self.before) and all(torch.equal(after[name], value) for name, value in self.before.items())
        unchanged = all(distributed.gather(same))
        if trainer.global_rank == 0:
            found = {"error": type(exception).__name__, "unchanged": unchanged}
            self.file.write_text(json.dumps(found))


def own_weights(module: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights, or of this rank's parts of them."""
    parts: dict[str, Any] = {}
    for name, p in module.policy.named_parameters():
        if p.requires_grad:
            parts[name] = p.ds_tensor if hasattr(p, "ds_tensor") else p.to_local() if hasattr(p, "to_local") else p
    assert all(part.numel() for part in parts.values()) and len(parts) > 10
    return {name: part.detach().clone() for name, part in parts.items()}


class Logits(Callback):
    """Leaves the logits of the trained policy, as the run's engine has it, in a file.

    Args:
        file: Written by rank 0.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        with pl_module.engine.drawing():
            found = logits(pl_module.policy.rollout_model)
        if trainer.global_rank == 0:
            torch.save(found, self.file)


@torch.no_grad()
def logits(model: Any) -> dict[str, torch.Tensor]:
    """Logits of both heads of a plain Janus model, for fixed text ids and fixed image codes."""
    inner = model.model
    ids, codes = torch.arange(3, 27).reshape(2, 12), torch.arange(24).reshape(2, 12)
    text = inner.language_model(input_ids=ids, use_cache=False).last_hidden_state
    embeds = inner.generation_aligner(inner.generation_embeddings(codes))
    image = inner.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return {"text": model.lm_head(text).clone(), "image": inner.generation_head(image).clone()}
