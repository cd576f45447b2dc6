"""What all benchmarks share: prompts in, a folder checked, scored here category by category, official results read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from egrpo.base.errors import UserError
from egrpo.benchmarks.items import (
    FolderError,
    Item,
    Problem,
    check_images,
    in_turn,
    missing_images,
    read_images,
    spread,
)
from egrpo.benchmarks.items import write_image as _write_image
from egrpo.benchmarks.results import Result, Scores, ScoringError, by_prompt, with_overall
from egrpo.benchmarks.table import TableLayout
from egrpo.data import read_prompts
from egrpo.paths import resolve
from egrpo.rewards.base import Reward, RewardError
from egrpo.rewards.measuring import measure

log = logging.getLogger(__name__)
FAILURES = (ValueError, OSError, RewardError)  # of one scorer, which say nothing about the others


class Benchmark(Protocol):
    """Prompts, a layout of files, scores."""

    name: str
    table: TableLayout

    def items(self) -> list[Item]:
        """What is to be drawn, in order. Raises a UserError where the user's prompts cannot be used."""

    def official_files(self, folder: Path) -> list[Path]:
        """What official evaluators left in the folder."""

    def write_image(self, folder: Path, item: Item, number: int, image: Image.Image) -> None:
        """Puts one image where the official evaluator looks for it, with all that belongs to it."""

    def missing(self, folder: Path) -> list[tuple[Item, int]]:
        """The images that an export has yet to draw."""

    def warnings(self) -> list[str]:
        """What the official evaluator will stumble over, a sentence each; told at an export."""

    def check(self, folder: Path) -> list[Problem]:
        """All that keeps the folder from being scored."""

    def score(self, folder: Path) -> Scores:
        """Scores what can be scored here.

        Raises:
            FolderError: `check` finds something; the error holds what could be scored all the same.
            ScoringError: a scorer failed; the error holds what the others gave.
        """

    def read_back(self, folder: Path) -> Scores:
        """What official evaluators left in the folder. Raises a UserError where it is incomplete or none is there."""


@dataclass(frozen=True)
class Scorer:
    """One method of scoring, loaded when it is first used.

    Args:
        reward: Makes a `Reward`; what it says in its attribute `note`, where it has one, is told with the method.
        method: Its name in the table.
        stand_in: In what it differs from the official evaluator; "" where it is that.
    """

    reward: Callable[[], Reward]
    method: str
    stand_in: str = ""


class FolderBenchmark:
    """The parts of a benchmark that do not depend on its layout.

    Args:
        table: Columns and published rows.
        scorers: Name -> method.
        scored_by: Category -> name of its scorer; categories that are left out are not scored here.
        weights: Category -> share of the overall score; empty = there is none.
        equal_weights: The overall score is the plain mean over the categories in `expected`; excludes `weights`.
        expected: Category -> number of prompts in the whole official set, told where fewer are scored.
        batch_size: Images held in memory at once.
        limit: Only so many prompts, spread evenly over all of them; None = all. Official evaluators want all.
    """

    name = ""

    def __init__(
        self,
        *,
        table: TableLayout,
        scorers: Mapping[str, Scorer] | None = None,
        scored_by: Mapping[str, str] | None = None,
        weights: Mapping[str, float] | None = None,
        equal_weights: bool = False,
        expected: Mapping[str, int] | None = None,
        batch_size: int = 64,
        limit: int | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"benchmark.batch_size={batch_size}: give at least 1")
        if limit is not None and limit < 1:
            raise UserError(f"benchmark.limit={limit}: give at least 1, or null for all prompts")
        self.table, self.weights, self.expected = table, dict(weights or {}), dict(expected or {})
        if equal_weights:
            self.weights = {category: 1 / len(self.expected) for category in self.expected}
        self.scorers, self.scored_by = dict(scorers or {}), dict(scored_by or {})
        unknown = sorted(set(self.scored_by.values()) - set(self.scorers))
        if unknown:
            raise UserError(f"benchmark.scored_by names {unknown}, but benchmark.scorers has {sorted(self.scorers)}")
        self.batch_size, self.limit = batch_size, limit
        self._loaded: dict[str, Reward] = {}

    def items(self) -> list[Item]:
        """See `Benchmark`."""
        return spread(self.all_items(), self.limit)

    def all_items(self) -> list[Item]:
        """Every prompt of the benchmark, whatever the limit. Raises as `items`."""
        raise NotImplementedError

    def official_files(self, folder: Path) -> list[Path]:
        """See `Benchmark`."""
        return []

    def read_back(self, folder: Path) -> Scores:
        """See `Benchmark`."""
        raise NotImplementedError

    def write_image(self, folder: Path, item: Item, number: int, image: Image.Image) -> None:
        """See `Benchmark`."""
        _write_image(folder, item, number, image)

    def missing(self, folder: Path) -> list[tuple[Item, int]]:
        """See `Benchmark`."""
        return missing_images(folder, self.items())

    def warnings(self) -> list[str]:
        """See `Benchmark`."""
        return []

    def check(self, folder: Path) -> list[Problem]:
        """See `Benchmark`."""
        return check_images(folder, self.items())

    def score(self, folder: Path) -> Scores:
        """See `Benchmark`; what is wrong with one category loses no other."""
        problems = self.check(folder)
        if any(not problem.category for problem in problems):
            raise FolderError(folder, problems)
        results: list[Result] = []
        faults: dict[str, list[str]] = {}
        for category, items in by_category(self.items()).items():
            if any(problem.category == category for problem in problems):
                continue
            if category not in self.scored_by:
                log.warning("%s of %s cannot be scored here: run the official evaluator on it", category, self.name)
                continue
            try:
                results.append(self.score_category(folder, category, items))
            except FAILURES as error:
                faults.setdefault(str(error), []).append(category)
        if problems:
            told = [str(ScoringError(self.scores([]), faults))] if faults else []
            raise FolderError(folder, problems, self.scores(results), told)
        if faults:
            raise ScoringError(self.scores(results), faults)
        return self.scores(results)

    def require(self, folder: Path) -> None:
        """Raises a FolderError that names all that `check` finds."""
        problems = self.check(folder)
        if problems:
            raise FolderError(folder, problems)

    def score_category(self, folder: Path, category: str, items: Sequence[Item]) -> Result:
        """One category by its scorer."""
        name = self.scored_by[category]
        values = self.image_scores(folder, name, items)
        return self.result(category, items, values, *self.told(name))

    def image_scores(self, folder: Path, name: str, items: Sequence[Item]) -> list[float]:
        """The scorer's value for every image of the items, in order; images are read a batch at a time."""
        reward = self.reward(name)
        values: list[float] = []
        for batch in in_turn(items, self.batch_size):
            images = read_images(folder, [path for _, path in batch])
            column = measure(name, reward, images, [item.record for item, _ in batch])
            values += column.values.tolist()
        return values

    def reward(self, name: str) -> Reward:
        """The scorer's model, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = self.scorers[name].reward()
        return self._loaded[name]

    def told(self, name: str) -> tuple[str, str]:
        """Method and stand-in of a scorer, with what its model says of itself."""
        scorer, note = self.scorers[name], getattr(self.reward(name), "note", "")
        return scorer.method, "; ".join(part for part in (scorer.stand_in, note) if part)

    def result(
        self, category: str, items: Sequence[Item], values: Sequence[float], method: str, stand_in: str
    ) -> Result:
        """Values of all images in order -> the category's result."""
        keys = [item.key for item in items for _ in item.files]
        pairs = list(zip(keys, values, strict=True))
        return Result(category, method, by_prompt(pairs), len(pairs), stand_in, self.expected.get(category))

    def scores(self, results: Sequence[Result]) -> Scores:
        """Results with their overall scores."""
        return Scores(self.name, results, with_overall(results, self.weights))


class PromptBenchmark(FolderBenchmark):
    """Any prompt file of the training schema, scored by any rewards: each scorer gives one column over all prompts.

    Args:
        prompts: JSON Lines or plain text, as `egrpo.data.read_prompts` reads it.
        name: Of the benchmark.
        images_per_prompt: Images a prompt.
        category_key: Where a record says what part it belongs to ("task_type", or a key of its own).
        leave_out: Values of `category_key` whose prompts are not used.
        settings: Those of `FolderBenchmark`; every category is scored by every scorer.
    """

    def __init__(
        self,
        prompts: str | Path,
        *,
        name: str,
        images_per_prompt: int = 1,
        category_key: str = "task_type",
        leave_out: Sequence[str] = (),
        **settings,
    ):
        super().__init__(**settings)
        if images_per_prompt < 1:
            raise UserError(f"benchmark.images_per_prompt={images_per_prompt}: give at least 1")
        self.prompts, self.name, self.images_per_prompt = prompts, name, images_per_prompt
        self.category_key, self.leave_out = category_key, set(leave_out)

    def all_items(self) -> list[Item]:
        """Every prompt: `images/{line:05d}_{k:02d}.png`, lines counted from 0 over the whole file."""
        items = []
        for number, record in enumerate(read_prompts(self.prompts)):
            category = record.to_dict().get(self.category_key)
            if not isinstance(category, str):
                raise UserError(
                    f"{self.prompts}: prompt {number + 1} ({record.prompt!r}) has no text under {self.category_key!r}; "
                    "add it, or name another key with benchmark.category_key=..."
                )
            if category not in self.leave_out:
                files = tuple(f"images/{number:05d}_{k:02d}.png" for k in range(self.images_per_prompt))
                items.append(Item(f"{number:05d}", record, category, files))
        return items

    def score(self, folder: Path) -> Scores:
        """Every scorer over all prompts ("all"), and over each category."""
        self.require(folder)
        items = self.items()
        results = []
        for name in self.scorers:
            values = iter(self.image_scores(folder, name, items))
            by_item = {item.key: [next(values) for _ in item.files] for item in items}
            for category, part in {"all": items, **by_category(items)}.items():
                flat = [value for item in part for value in by_item[item.key]]
                results.append(self.result(category, part, flat, *self.told(name)))
        return self.scores(results)

    def read_back(self, folder: Path) -> Scores:
        """There is no other evaluator: what was scored here."""
        return Scores.load(folder)


def prompt_source(prompts: str | Path | None, what: str) -> Path:
    """The user's file or folder of prompts.

    Raises:
        UserError: none is named, or it does not exist.
    """
    if not prompts:
        raise UserError(f"no prompts are named: give your copy of {what} with benchmark.prompts=PATH")
    path = resolve(prompts)
    if not path.exists():
        raise UserError(f"{path} does not exist: name your copy of {what} with benchmark.prompts=PATH")
    return path


def by_category(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by category, both in order of appearance."""
    parts: dict[str, list[Item]] = {}
    for item in items:
        parts.setdefault(item.category, []).append(item)
    return parts
