"""What a reward is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from egrpo.types import PromptRecord


@runtime_checkable
class Reward(Protocol):
    """Scores images for their prompts. Any callable of this form is a reward: a class, or a plain function."""

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records -> [N] float32, higher is better."""
        ...


class RewardError(RuntimeError):
    """A reward raised, or returned a wrong length, NaN or infinity. The message says which, and for which prompt."""
