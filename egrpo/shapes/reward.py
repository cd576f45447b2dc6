"""The oracle as a reward."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from egrpo.shapes import oracle
from egrpo.types import PromptRecord


class OracleReward:
    """Scores a drawing by what the oracle reads off its pixels.

    Args:
        strict: False = partial credit in 0..1; True = 1 only where all that was asked for is there and nothing else.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict

    def check(self, records: list[PromptRecord]) -> list[str]:
        """Records that do not say what their prompts ask, a sentence each: see `egrpo.rewards.base.Reward`."""
        found = []
        for record in records:
            try:
                oracle.spec_of(record)
            except ValueError as error:
                found.append(str(error))
        return found

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images of 48 x 48 pixels and their records -> [N] float32.

        Raises:
            UserError: a record does not say what its prompt asks (no `scene` key), or an image has another size.
        """
        scores = [oracle.score(image, record) for image, record in zip(images, records, strict=True)]
        return torch.tensor([float(score == 1) if self.strict else score for score in scores], dtype=torch.float32)
