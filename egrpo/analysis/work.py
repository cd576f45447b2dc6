"""What a study draws: settings, prompts, sizes, and the units of work that they make."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.types import TASK_TYPES, PromptRecord

STUDY_STEP = -3  # names the study's stream of random numbers, apart from those of training steps and of validation

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Setting:
    """One way of drawing that a study compares with others.

    Args:
        name: Of its column and folders: letters, digits, "_", ".", "-".
        description: What a reader is told it is.
        cot: Whether a plan is written before the image is drawn.
        model: Node of the model as conf/model has it.
        ckpt_path: Folder of a training run, or a checkpoint inside one; None = the model as it is.
        train: Overrides of `python -m egrpo.train` that make the run where it is missing; None = it must be there.

    Raises:
        UserError: the name would not do as a folder's, or there is something to train and no place for it.
    """

    name: str
    model: Mapping[str, Any]
    description: str = ""
    cot: bool = True
    ckpt_path: str | None = None
    train: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"settings.{self.name}: name a setting with letters, digits, _, . and - alone")
        if self.train is not None and self.ckpt_path is None:
            raise UserError(
                f"settings.{self.name}.train: say where the run is kept with settings.{self.name}.ckpt_path"
            )


@dataclass(frozen=True)
class Sizes:
    """How much is drawn for a setting.

    Args:
        num_prompts: Prompts, spread evenly over task types.
        plans_per_prompt: Plans a prompt, P.
        images_per_plan: Images of each plan, M.
        plain_images: Images a prompt where there are no plans.

    Raises:
        UserError: one of them is below 1.
    """

    num_prompts: int
    plans_per_prompt: int
    images_per_plan: int
    plain_images: int

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1")

    def images(self, cot: bool) -> int:
        """Images a prompt."""
        return self.plans_per_prompt * self.images_per_plan if cot else self.plain_images


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; as in `egrpo.policy.JanusPolicy.rollout`.

    Raises:
        UserError: batch_size is below 1.
    """

    seed: int
    cfg_weight: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int | None = None  # most sequences drawn at once, None = all images of a prompt

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"rollout.batch_size={self.batch_size}: give at least 1, or null for all at once")


@dataclass(frozen=True)
class Unit:
    """What is drawn, scored and stored in one go: all images of one prompt in one setting."""

    setting: str
    prompt_index: int


@dataclass(frozen=True)
class Work:
    """A whole study's drawing, as every process gets it.

    Args:
        folder: Of the study.
        settings: In the order of the table.
        prompts: The chosen records.
        sizes: How much.
        sampling: How.
        ensemble: Node of the `RewardEnsemble`.
        judges: Nodes of the judges by name.
        device: Of the policy: "auto" or as torch names it.
        threads: Of torch on a CPU.
    """

    folder: Path
    settings: Mapping[str, Setting]
    prompts: Sequence[PromptRecord]
    sizes: Sizes
    sampling: Sampling
    ensemble: Mapping[str, Any]
    judges: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    threads: int = 1

    @property
    def units(self) -> list[Unit]:
        """All of them, in the order of the table."""
        return [Unit(name, index) for name in self.settings for index in range(len(self.prompts))]

    @property
    def reward_names(self) -> list[str]:
        return [name for name, node in self.ensemble["rewards"].items() if node is not None]

    def images(self, unit: Unit) -> int:
        return self.sizes.images(self.settings[unit.setting].cot)


def choose_prompts(
    records: Sequence[PromptRecord], count: int, *, splits: Sequence[str] | None = None, seed: int = 0
) -> list[PromptRecord]:
    """Prompts of a study: task types take turns, and within a type a seeded order decides.

    Equal prompts would get equal images, so each counts once. Fewer prompts are a prefix of more.

    Args:
        records: Of a prompt file.
        count: How many.
        splits: Only records of these splits; None = all.
        seed: Of the order.

    Raises:
        UserError: there are fewer than `count`.
    """
    there = {record.prompt: record for record in reversed(records) if not splits or record.extra.get("split") in splits}
    if len(there) < count:
        of = f" of the splits {', '.join(splits)}" if splits else ""
        raise UserError(f"num_prompts={count}: the prompt file holds only {len(there)} different prompts{of}")
    kinds = {kind: [r for r in there.values() if r.task_type == kind] for kind in _task_types(records)}
    for kind, members in kinds.items():
        members.sort(key=lambda record: record.prompt)
        random.Random(f"{seed}/{kind}").shuffle(members)
    longest = max(map(len, kinds.values()))
    turns = [members[turn] for turn in range(longest) for members in kinds.values() if turn < len(members)]
    return turns[:count]


def _task_types(records: Sequence[PromptRecord]) -> list[str]:
    present = {record.task_type for record in records}
    return [kind for kind in TASK_TYPES if kind in present] + sorted(present - set(TASK_TYPES))
