"""The data that flows between the packages, as frozen dataclasses with a shape on every field.

Legend: B prompts, G samples a prompt (a group), N = B x G sequences in group order (the G samples of a prompt are
consecutive), L context positions, T drawn positions, R rewards. Masks: True = counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from egrpo.algorithm.mixing import mix_rewards

TASK_TYPES = ("object", "color", "shape", "texture", "spatial", "numeracy", "complex", "non")


@dataclass(frozen=True)
class PromptRecord:
    """One prompt with what rule-based rewards need to judge its image (schema of the T2I-R1 training file).

    `None` means that the file has no such key. `extra` keeps every key outside the schema, for own rewards.
    """

    prompt: str
    nouns: list[str] = field(default_factory=list)
    attr_nouns: list[str] | None = None
    spatial_info: dict[str, str] | None = None  # obj1, obj2, locality
    numeracy_info: list[dict[str, Any]] | None = None  # obj_name, num
    task_type: str = "non"
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The record as one line of the file: absent keys left out, extra keys beside the others."""
        row = {k: v for k, v in asdict(self).items() if v is not None and k != "extra"}
        return {**row, **self.extra}

    @staticmethod
    def from_dict(row: dict[str, Any]) -> PromptRecord:
        """Inverse of `to_dict`, unchecked; `egrpo.data.read_prompts` checks files."""
        known = {f.name for f in fields(PromptRecord)} - {"extra"}
        extra = {name: value for name, value in row.items() if name not in known}
        return PromptRecord(**{name: value for name, value in row.items() if name in known}, extra=extra)


@dataclass(frozen=True)
class Segment:
    """Tokens drawn after a context, with all that scoring needs to run them again.

    `logps` and `entropy` are recorded while sampling, at the sampling temperature, from the conditional logits, or from
    the guided ones where `Rollout.guidance` says so; entropy is divided by the log of the vocabulary size.
    """

    context_ids: Tensor  # [N, L] int64, text tokens; for images begin-of-image stands last
    context_mask: Tensor  # [N, L] bool, False = padding wherever it stands
    tokens: Tensor  # [N, T] int64, drawn tokens (text ids or image codes)
    mask: Tensor  # [N, T] bool, up to and including the first end-of-sequence token
    logps: Tensor  # [N, T] float32, nats
    entropy: Tensor  # [N, T] float32, 0..1

    def __getitem__(self, rows: slice | Tensor) -> Segment:
        return Segment(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Rollout:
    """N samples: the plan (semantic CoT) if there is one, the image tokens, the decoded pixels."""

    prompts: list[str]  # N raw prompts
    plans: list[str]  # N plans, "" without CoT
    truncated: Tensor  # [N] bool, True = the plan hit the length limit before its end-of-sequence token
    text: Segment | None  # None without CoT
    image: Segment
    pixels: Tensor  # [N, H, W, 3] uint8
    guidance: float = 1.0  # of the logits that image tokens are recorded and scored by: u + guidance (c - u)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sampled(self) -> TokenScores:
        """What was recorded while sampling, text columns first (none without CoT); no gradient."""
        segments = [self.image] if self.text is None else [self.text, self.image]
        return TokenScores(
            logps=torch.cat([s.logps for s in segments], dim=1),
            entropy=torch.cat([s.entropy for s in segments], dim=1),
            mask=torch.cat([s.mask for s in segments], dim=1),
            is_image=torch.cat([torch.full_like(s.mask, s is self.image) for s in segments], dim=1),
        )

    @property
    def segments(self) -> list[str]:
        """Names of the segments there are, in the order of columns."""
        return ["image"] if self.text is None else ["text", "image"]

    def __getitem__(self, rows: slice | Tensor) -> Rollout:
        """Some rows: a slice, or indices [n] int64."""
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return replace(
            self,
            prompts=[self.prompts[row] for row in numbers],
            plans=[self.plans[row] for row in numbers],
            truncated=self.truncated[rows],
            text=None if self.text is None else self.text[rows],
            image=self.image[rows],
            pixels=self.pixels[rows],
        )


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced scores of a rollout: the text segment's positions first, then the image segment's."""

    logps: Tensor  # [N, T] float32, with gradient where asked for
    entropy: Tensor  # [N, T] float32, detached, divided by log(vocabulary size); [N, 0] where not asked for
    mask: Tensor  # [N, T] bool
    is_image: Tensor  # [N, T] bool

    @staticmethod
    def cat(parts: list[TokenScores]) -> TokenScores:
        """Joins micro-batches of equal T along N."""
        return TokenScores(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(TokenScores)))


@dataclass(frozen=True)
class RewardTable:
    """Raw rewards, one column a reward, and the weights that mix them."""

    names: list[str]  # R
    values: Tensor  # [N, R] float32, raw, higher is better; NaN where dropped
    weights: Tensor  # [R] float32
    mask: Tensor  # [N, R] bool, False = the reward failed for this image and was dropped
    applies: Tensor  # [N, R] bool, False = a constant for this prompt, whatever the image

    @property
    def total(self) -> Tensor:
        """Weighted sum of the raw rewards, [N] float32; NaN where none with a weight is left."""
        return mix_rewards(self.values, self.weights, self.mask)

    @property
    def complete_total(self) -> Tensor:
        """The same, [N] float32, NaN wherever a reward with a weight was dropped: what images may be compared by."""
        return self.total.masked_fill(~(self.mask | (self.weights == 0)).all(dim=1), torch.nan)

    @property
    def judged(self) -> Tensor:
        """[N] bool: images that some reward with a weight counts for."""
        return (self.mask & (self.weights != 0)).any(dim=1)

    @property
    def told(self) -> Tensor:
        """[N, R] bool: values that say something about the image."""
        return self.mask & self.applies
