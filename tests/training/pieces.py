"""Small rewards and callbacks that test configurations name, and ways to look at a run."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from PIL import Image, ImageStat
from torch import Tensor

from egrpo.policy import JanusPolicy
from egrpo.training import GRPOModule
from egrpo.types import PromptRecord


class Brightness:
    """Mean grey value, 0..1: a reward that every image moves, whatever the model has learned.

    Args:
        broken_call: From this call on, every second value is `broken`.
        broken: What a broken reward returns.
    """

    def __init__(self, broken_call: int | None = None, broken: float = float("nan")) -> None:
        self.broken_call, self.broken, self.calls = broken_call, broken, 0

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        self.calls += 1
        values = torch.tensor([ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images])
        if self.broken_call is not None and self.calls >= self.broken_call:
            values[1::2] = self.broken
        return values


def red_share(images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
    """Mean share of red in the light of an image, 0..1: a second reward that every image moves."""
    means = torch.tensor([ImageStat.Stat(image.convert("RGB")).mean for image in images])
    return means[:, 0] / means.sum(1)


# The override that adds it.
RED = (
    "+reward.red={_target_: egrpo.rewards.WeightedReward, weight: 3.0, "
    "reward: {_target_: tests.training.pieces.red_share, _partial_: true}}"
)


class Killer(Checkpoint):
    """Kills its own process with SIGKILL. Lightning calls checkpoint callbacks last, and this one after the others.

    Args:
        hook: Where, by the name of Lightning's hook.
        step: When, in optimizer steps.
    """

    def __init__(self, hook: str, step: int) -> None:
        def kill(trainer: Trainer, *args: Any) -> None:
            if trainer.state.fn == "fit" and trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(self, hook, kill)


class Poison(Callback):
    """Spoils one weight before an optimizer step's rollout, or one gradient after its backward pass.

    Args:
        step: When, in optimizer steps.
        what: "weight" or "gradient".
    """

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        parameter = pl_module.policy.model.lm_head.weight
        if trainer.global_step != self.step:
            return
        if self.what == "weight":
            parameter.data[0, 0] = float("nan")
        else:
            parameter.register_hook(lambda gradient: gradient * float("inf"))


def metrics(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, empty cells and `perf/` columns left out."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v and not k.startswith("perf/")} for row in csv.DictReader(file)]


def trained_weights(module: GRPOModule) -> dict[str, torch.Tensor]:
    """Copies of the trainable weights by name."""
    return {name: p.detach().clone() for name, p in module.policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def make_lively(policy: JanusPolicy) -> None:
    """Scales the heads of an untrained model to logits that differ; those of a trained one stay as they are."""
    inner = policy.model.model
    hidden = inner.language_model.norm(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    for head, last in (
        (inner.generation_head, inner.generation_head.vision_head),
        (policy.model.lm_head, policy.model.lm_head),
    ):
        last.weight.mul_(1 / head(hidden).std().clamp(max=1))
