"""WISE (Niu et al. 2025, arXiv 2503.07265): 1,000 prompts that need knowledge, one image each, judged by a model.

Facts of the official evaluators (github.com/PKU-YuanGroup/WISE): images are `{prompt_id}.png` in one folder; the part
that a prompt belongs to follows from its id. The legacy set has three scores of 0..2 an image, of which
WiScore = (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2; a score of 999 means that the judge failed. The
verified set has one score, 0 or 1.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.benchmarks.base import FolderBenchmark, by_category, prompt_source
from egrpo.benchmarks.items import OWN, Item
from egrpo.benchmarks.judge import ChatJudge, Question
from egrpo.benchmarks.result_files import json_lines, number_of, require_all
from egrpo.benchmarks.results import Result, Scores
from egrpo.benchmarks.rubric import Rubric
from egrpo.types import PromptRecord

KEYS = ("Prompt", "Explanation", "Category", "Subcategory", "prompt_id")
FAILED = 999
REWRITTEN = "_rewrite"  # ends the name of a file with easier prompts of the same ids

log = logging.getLogger(__name__)


class Wise(FolderBenchmark):
    """The benchmark from the user's copy of the JSON files.

    Args:
        prompts: Folder with the JSON files (or one of them); files that hold no WISE prompts are passed over, and so is
            `X_rewrite.json` beside `X.json`: the same ids with the answer in the prompt.
        parts: Category -> its first and last prompt_id.
        rubric: What is asked of the judge and how its answers make a score.
        official: Name of the official judge in the table.
        judge: Makes the client of a server of OpenAI's chat completions; called when something is scored.
        stand_in: In what our judging differs from the official one.
        settings: Those of `FolderBenchmark`.
    """

    name = "wise"

    def __init__(
        self,
        prompts: str | Path | None,
        *,
        parts: Mapping[str, Sequence[int]],
        rubric: Rubric,
        official: str,
        judge: Callable[[], ChatJudge],
        stand_in: str = "",
        name: str = "wise",
        **settings,
    ):
        super().__init__(**settings)
        self.prompts, self.rubric, self.judge = prompts, rubric, judge
        self.parts = {category: (first, last) for category, (first, last) in parts.items()}
        self.official, self.stand_in, self.name = official, stand_in, name

    def all_items(self) -> list[Item]:
        """Every prompt of every file there is, by prompt_id: `{prompt_id}.png`.

        Raises:
            UserError: there are none, one lacks a key, or a prompt_id comes twice or belongs to no part.
        """
        rows: dict[int, Mapping[str, Any]] = {}
        source = prompt_source(self.prompts, "WISE's data folder")
        for path in [source] if source.is_file() else _own_files(source):
            for row in _prompt_rows(path):
                number = row["prompt_id"]
                if number in rows and dict(rows[number]) != dict(row):
                    raise UserError(f"{path}: prompt_id {number} stands for two prompts: keep one set of files only")
                rows[number] = row
        if not rows:
            raise UserError(
                f"{source} holds no WISE prompts (JSON lists of {', '.join(KEYS)}): name your copy of WISE's data "
                "folder with benchmark.prompts=FOLDER"
            )
        return [self._item(number, rows[number]) for number in sorted(rows)]

    def _item(self, number: int, row: Mapping[str, Any]) -> Item:
        extra = {key: value for key, value in row.items() if key != "Prompt"}
        return Item(str(number), PromptRecord(row["Prompt"], extra=extra), self._part(number), (f"{number}.png",))

    def _part(self, number: int) -> str:
        for category, (first, last) in self.parts.items():
            if first <= number <= last:
                return category
        raise UserError(f"{self.prompts}: prompt_id {number} belongs to no part of {self.name}: {self.parts}")

    def score(self, folder: Path) -> Scores:
        """Asks the judge about every image; answers are kept in `egrpo/judge`, so that a stopped run goes on there.

        Raises:
            UserError: the judge's settings are wrong, or some images got no usable answer; it says how to go on.
        """
        judge = self.judge()
        self.require(folder)
        items = self.items()
        questions = [
            Question(item.key, self.rubric.question(item.prompt, item.record.extra["Explanation"]), item.files[0])
            for item in items
        ]
        answers, bill = judge.ask(folder, questions, self.rubric.read, folder / OWN / "judge")
        values = {key: self.rubric.value(scores) for key, scores in answers.items()}
        scores = self.scores(self._results(items, values, judge.model, self.stand_in))
        return Scores(self.name, scores.results, scores.overall, {"judge": asdict(bill)})

    def official_files(self, folder: Path) -> list[Path]:
        """See `Benchmark`."""
        files = sorted({p for name in ("*results*.jsonl", "*scores*.jsonl") for p in folder.rglob(name)})
        return [path for path in files if OWN not in path.relative_to(folder).parts]

    def read_back(self, folder: Path) -> Scores:
        """Official results: every `*results*.jsonl` and `*scores*.jsonl` in the folder and below.

        Raises:
            UserError: there are none, an image is not scored or twice in different ways, the official judge failed for
                one, or a score is out of range.
        """
        files = self.official_files(folder)
        if not files:
            raise UserError(f"{folder} holds no official WISE results (*_scores*.jsonl): run the official evaluator")
        items = self.items()
        records = {item.key: item.record for item in items}
        values: dict[str, float] = {}
        for path in files:
            for number, row in enumerate(json_lines(path), start=1):
                key, value = self._official_row(path, number, row)
                if key in records and (fault := _other_prompt(row, records[key])):
                    raise UserError(f"{path}, line {number}: {fault}: name the set of prompts that was judged")
                if values.get(key, value) != value:
                    raise UserError(f"{path}, line {number}: prompt_id {key} has another score in an earlier file")
                values[key] = value
        require_all(files[0].parent, values, [item.key for item in items], "prompt_id")
        return self.scores(self._results(items, values, self.official, ""))

    def _official_row(self, path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, float]:
        where = f"{path}, line {number}"
        if not isinstance(row.get("prompt_id"), int):
            raise UserError(f"{where}, has no whole prompt_id: run the official evaluator again")
        scores: dict[str, float] = {}
        for name in self.rubric.shares:
            value = number_of(row.get(name))
            if value == FAILED:
                raise UserError(
                    f"{where}: the official judge failed on prompt_id {row['prompt_id']} ({name} is {FAILED}): "
                    "delete the line and run the official evaluator again"
                )
            fault = self.rubric.fault(name, value)
            if value is None or fault:
                raise UserError(f"{where}: {fault}: is this another version of WISE, or a half-written result?")
            scores[name] = value
        return str(row["prompt_id"]), self.rubric.value(scores)

    def _results(self, items: Sequence[Item], values: Mapping[str, float], method: str, stand_in: str) -> list[Result]:
        return [
            self.result(category, part, [values[item.key] for item in part], method, stand_in)
            for category, part in by_category(items).items()
        ]


def _other_prompt(row: Mapping[str, Any], record: PromptRecord) -> str:
    """How a line of results contradicts the prompt that it is about; "" where it does not."""
    own = {**record.extra, "prompt": record.prompt}
    for name in ("Subcategory", "prompt"):
        if name in row and row[name] != own[name]:
            return f"prompt_id {row['prompt_id']} has the {name} {row[name]!r}, and benchmark.prompts has {own[name]!r}"
    return ""


def _own_files(folder: Path) -> list[Path]:
    """The JSON files of a folder without rewritten copies of others."""
    paths = sorted(folder.glob("*.json"))
    stems = {path.stem for path in paths}
    copies = [p for p in paths if p.stem.endswith(REWRITTEN) and p.stem.removesuffix(REWRITTEN) in stems]
    if copies:
        log.info("%s: rewritten prompts are not used (%s)", folder, ", ".join(path.name for path in copies))
    return [path for path in paths if path not in copies]


def _prompt_rows(path: Path) -> list[Mapping[str, Any]]:
    """The WISE prompts of a file; none where it is a JSON file of another kind."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): copy WISE's file again") from error
    if not isinstance(rows, list) or not any(isinstance(row, dict) and "Prompt" in row for row in rows):
        return []
    for place, row in enumerate(rows):
        lacking = [key for key in KEYS if not isinstance(row, dict) or row.get(key) in (None, "")]
        if lacking:
            raise UserError(f"{path}: entry {place} has no {', '.join(lacking)}: copy WISE's file again")
        if not isinstance(row["prompt_id"], int):
            raise UserError(f"{path}: entry {place} has the prompt_id {row['prompt_id']!r}, which is no whole number")
    return rows
