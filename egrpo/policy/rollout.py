"""Drawing the two segments of a rollout, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from egrpo.base.errors import UserError
from egrpo.policy.backbone import Backbone
from egrpo.policy.capture import Steps
from egrpo.policy.drawing import Drawing
from egrpo.policy.layout import filler_of, image_context, pad_rows
from egrpo.policy.lockstep import Lockstep
from egrpo.policy.randomness import SampleKey, sample_uniforms
from egrpo.policy.sampling import Drawn, draw_image_tokens, draw_text_tokens
from egrpo.types import Segment


@dataclass(frozen=True)
class Sampler:
    """Draws plans and images for N prompts of text ids.

    Args:
        backbone: The modules.
        steps: How tokens are fed.
        lockstep: With ranks that hold other parts of the weights.
        keys: N keys of random numbers; None = greedy.
        rows: Which rows are drawn at once; the result does not depend on it.
        together: Rows that are padded together before begin-of-image in published padding; None = all.
        pad: Pad token id.
        padding: "exact" or "published", see `egrpo.policy.sample_image_tokens`.
        device: Where the language model is.
    """

    backbone: Backbone
    steps: Steps
    lockstep: Lockstep
    keys: list[SampleKey] | None
    rows: list[slice]
    together: int | None
    pad: int
    padding: str
    device: torch.device

    def text(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, eos: int | None, how: Drawing
    ) -> tuple[Segment, Tensor]:
        """Plans of at most `max_tokens` tokens, and which of them were cut there, [N] bool."""
        ids, mask = self._placed(pad_rows(prompts, self.pad, left=True))
        drawn = [
            draw_text_tokens(
                self.backbone,
                ids[part],
                mask[part],
                self._uniforms(part, max_tokens, "text"),
                max_tokens=max_tokens,
                eos=eos,
                how=how,
                lockstep=self.lockstep,
                steps=self.steps,
            )
            for part in self.rows
        ]
        # Padding of shorter chunks is what a joint run would have drawn: end-of-sequence, not counted.
        longest = max(part.tokens.shape[1] for part in drawn)
        segment = segment_of(ids, mask, [widened(part, longest, eos) for part in drawn])
        return segment, torch.cat([part.truncated for part in drawn])

    def image(self, prompts: Sequence[Sequence[int]], begin_of_image: int, num_tokens: int, how: Drawing) -> Segment:
        """Image codes, `num_tokens` a row."""
        context = image_context(prompts, self.pad, begin_of_image, self.padding, self.together)
        ids, mask = self._placed(context)
        filler = filler_of(mask) if self.padding == "published" else None
        drawn = [
            draw_image_tokens(
                self.backbone,
                ids[part],
                mask[part],
                self._uniforms(part, num_tokens, "image"),
                num_tokens=num_tokens,
                pad=self.pad,
                how=how,
                padding=self.padding,
                filler=None if filler is None else filler[part],
                steps=self.steps,
            )
            for part in self.rows
        ]
        return segment_of(ids, mask, drawn)

    def _placed(self, context: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return context[0].to(self.device), context[1].to(self.device)

    def _uniforms(self, rows: slice, num_tokens: int, domain: str) -> Tensor | None:
        if self.keys is None:
            return None
        return sample_uniforms(self.keys[rows], num_tokens, domain=domain).to(self.device)


def chunks(count: int, size: int | None) -> list[slice]:
    """Slices of at most `size` rows; None = all in one."""
    size = size or count
    return [slice(start, start + size) for start in range(0, count, size)]


def one_in(images_per_plan: int, group_size: int, offsets: Sequence[int]) -> int:
    """Checks that every group of samples is made of whole plans; returns how many samples share one.

    Raises:
        UserError: it is not.
    """
    if images_per_plan < 1:
        raise UserError(f"images_per_plan={images_per_plan}: give at least 1")
    if group_size % images_per_plan or any(offset % images_per_plan for offset in offsets):
        raise UserError(
            f"images_per_plan={images_per_plan} must divide the group of {group_size} samples, and the index that it "
            "starts with"
        )
    return images_per_plan


def widened(drawn: Drawn, length: int, eos: int | None) -> Drawn:
    """Rows of `length` tokens: what is added is end-of-sequence and not counted."""
    missing = length - drawn.tokens.shape[1]
    if not missing:
        return drawn

    def pad(values: Tensor, value: float) -> Tensor:
        return nn.functional.pad(values, (0, missing), value=value)

    return Drawn(
        pad(drawn.tokens, eos or 0),
        pad(drawn.mask, False),
        pad(drawn.logps, 0.0),
        pad(drawn.entropy, 0.0),
        drawn.truncated,
    )


def segment_of(ids: Tensor, mask: Tensor, drawn: list[Drawn]) -> Segment:
    """Chunks of equal width as one segment after its context, ids and mask [N, L]."""
    parts = [torch.cat([getattr(part, name) for part in drawn]) for name in ("tokens", "mask", "logps", "entropy")]
    return Segment(ids, mask, *parts)
