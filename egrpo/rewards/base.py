"""What a reward is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from egrpo.base.errors import UserError
from egrpo.types import PromptRecord


@runtime_checkable
class Reward(Protocol):
    """Scores images for their prompts. Any callable of this form is a reward: a class, or a plain function.

    A reward that gives some prompts a constant whatever the image (a question about nouns, and the prompt has none) may
    also have `applies(records) -> [N] bool`, False for those prompts; they are left out of its logged statistics.

    A reward that cannot judge every prompt may have `check(records) -> list[str]`: a sentence for each fault, which
    says what is wrong with which prompt and how to mend it. A run asks for all of its prompts before it begins.
    """

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records -> [N] float32, higher is better."""
        ...


class RewardError(UserError, RuntimeError):
    """A reward raised, or returned a wrong length, NaN or infinity. The message says which, and for which prompt."""


class PartialRewardError(RewardError):
    """A reward scored some images and failed for others; raised by rewards that know which.

    Args:
        values: [N] float32, NaN where it failed.
        reasons: Row -> why it failed.
    """

    def __init__(self, values: Tensor, reasons: Mapping[int, str]):
        told = f", the first of them: {reasons[min(reasons)]}" if reasons else ""
        super().__init__(f"no value for {len(reasons)} of {len(values)} images{told}")
        self.values, self.reasons = values, dict(reasons)
