"""What a study is: its settings, its sizes, and how to read the tokens beside its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egrpo.base.errors import UserError

ENTROPIES = ("guided", "image")


@dataclass(frozen=True)
class TokenTable:
    """The tokens of one setting's images of one prompt, in the order of (plan_index, image_index).

    n images, T image tokens. Entropies are divided by the log of the vocabulary's size: 0 = certain, 1 = uniform.
    Without plans the three lists hold n empty entries.
    """

    codes: np.ndarray  # [n, T] int, image tokens row by row
    image_entropy: np.ndarray  # [n, T] float32, of conditional logits
    guided_entropy: np.ndarray  # [n, T] float32, of guided logits
    plan_ids: list[np.ndarray]  # n of [plan tokens] int, counted tokens only
    plan_texts: list[list[str]]  # n of [plan tokens], each token as text
    text_entropy: list[np.ndarray]  # n of [plan tokens] float32


TokenReader = Callable[[str, int], TokenTable]  # (setting, prompt_index)


@dataclass(frozen=True)
class StudyDescription:
    """What the report says of a study beyond its numbers, and what decides how they are computed.

    Roles are named here because a setting's name says nothing: `cot_pair` and `training_pairs` are what the first
    finding is judged by, and without them it cannot be judged.

    Raises:
        UserError: a baseline, pair or run names a setting that there is not; a quantile outside 0..1.
    """

    title: str
    command: str  # as a shell takes it, to repeat the study
    settings: Mapping[str, str]  # name -> what a reader is told it is, in the order of tables and figures
    baseline: str  # the setting that the others are compared with
    sizes: Mapping[str, int]  # e.g. num_prompts, plans_per_prompt, images_per_plan
    seed: int  # of the drawing; the bootstrap's too
    versions: Mapping[str, str] = field(default_factory=dict)
    config: str = ""  # the resolved configuration, YAML
    entropy_policy: Callable[..., Any] | None = None  # f(advantages, entropy, mask, is_image), for the map of tokens
    runs: Mapping[str, Path | None] = field(default_factory=dict)  # setting -> training run's folder with metrics.csv
    cot_pair: tuple[str, str] | None = None  # (without plans, with plans), the same weights
    training_pairs: Sequence[tuple[str, str]] = ()  # (before, after reinforcement learning), else the same
    entropy: str = "guided"  # image entropies that findings are judged by: "guided" logits, as published, or "image"
    stratum_quantile: float = 0.25  # images with image-entropy std up to this quantile are "low"
    resamples: int = 2000  # of every bootstrap

    def __post_init__(self) -> None:
        pairs = [*([self.cot_pair] if self.cot_pair else []), *self.training_pairs]
        for name in [self.baseline, *self.runs, *(name for pair in pairs for name in pair)]:
            if name not in self.settings:
                raise UserError(f'the study has no setting "{name}"; name one of {", ".join(self.settings)}')
        if self.entropy not in ENTROPIES:
            raise UserError(f'entropy is "{self.entropy}"; choose one of {", ".join(ENTROPIES)}')
        if not 0 < self.stratum_quantile <= 1:
            raise UserError(f"stratum_quantile is {self.stratum_quantile}; set it above 0 and at most 1")
        if self.resamples < 100:
            raise UserError(f"resamples is {self.resamples}; an interval needs at least 100")
