"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): 553 prompts in six tasks, four images each, right or wrong.

Facts of the official evaluator (github.com/djghosh13/geneval): it walks the folders named by digits, reads
`metadata.jsonl` as one JSON object and the images `samples/DIGITS.png`, and writes one line an image. A task's score is
the share of right images, the overall score the plain mean over tasks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.base.lines import read_lines
from egrpo.benchmarks.base import FolderBenchmark, prompt_source
from egrpo.benchmarks.items import Item, Problem
from egrpo.benchmarks.result_files import json_lines, require_all
from egrpo.benchmarks.results import Scores
from egrpo.types import PromptRecord

RESULTS = "results.jsonl"
IMAGE = re.compile(r"(\d{5}/samples/\d+\.png)$")


class GenEval(FolderBenchmark):
    """The benchmark from the user's `evaluation_metadata.jsonl`.

    Args:
        prompts: That file.
        images_per_prompt: Images a prompt, 4 officially.
        method: The official evaluator's name in the table.
        settings: Those of `FolderBenchmark`.
    """

    name = "geneval"

    def __init__(self, prompts: str | Path | None, *, images_per_prompt: int = 4, method: str = "GenEval", **settings):
        super().__init__(**settings)
        if images_per_prompt < 1:
            raise UserError(f"benchmark.images_per_prompt={images_per_prompt}: give at least 1")
        self.prompts, self.images_per_prompt, self.method = prompts, images_per_prompt, method

    def all_items(self) -> list[Item]:
        """Every line: `{line:05d}/samples/{k:04d}.png`, its metadata beside it, and `grid.png`.

        Raises:
            UserError: the file is not there, or a line is not GenEval's metadata; the message names the line.
        """
        source = prompt_source(self.prompts, "GenEval's prompts/evaluation_metadata.jsonl")
        if not source.is_file():
            raise UserError(f"{source} is no file: name GenEval's evaluation_metadata.jsonl inside it")
        try:
            lines = [line for line in read_lines(source) if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{source} is not UTF-8 ({error}): save it as UTF-8") from error
        if not lines:
            raise UserError(f"{self.prompts} holds no prompts: name GenEval's evaluation_metadata.jsonl")
        return [self._item(number, line) for number, line in enumerate(lines)]

    def _item(self, number: int, line: str) -> Item:
        folder = f"{number:05d}"
        files = tuple(f"{folder}/samples/{k:04d}.png" for k in range(self.images_per_prompt))
        row = self._metadata(number, line)
        extra = {key: value for key, value in row.items() if key != "prompt"}
        side = {f"{folder}/metadata.jsonl": line.strip() + "\n"}
        return Item(folder, PromptRecord(row["prompt"], extra=extra), row["tag"], files, side, f"{folder}/grid.png")

    def _metadata(self, number: int, line: str) -> Mapping[str, Any]:
        where = f"{self.prompts}, line {number + 1}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON ({error}): copy GenEval's file again") from error
        fault = metadata_fault(row)
        if fault:
            raise UserError(f"{where} {fault}: copy GenEval's evaluation_metadata.jsonl again")
        return row

    def check(self, folder: Path) -> list[Problem]:
        """See `Benchmark`; folders of no prompt count too, for the official evaluator reads them."""
        wanted = {item.key for item in self.items()}
        names = sorted(p.name for p in folder.glob("*") if p.is_dir() and p.name.isdigit()) if folder.is_dir() else []
        strange = [name for name in names if name not in wanted]
        fault = f"belongs to no prompt (one of {len(strange)}), and the official evaluator would read it"
        mend = "delete it, or name the prompts it was made from"
        return super().check(folder) + [Problem(f"{name}/", fault, mend) for name in strange[:1]]

    def official_files(self, folder: Path) -> list[Path]:
        """See `Benchmark`."""
        return [path for path in [folder / RESULTS] if path.is_file()]

    def read_back(self, folder: Path) -> Scores:
        """The official `results.jsonl`, which belongs into the folder.

        Raises:
            UserError: it is not there, or does not fit the images.
        """
        path = folder / RESULTS
        if not path.is_file():
            raise UserError(f"{folder} has no {RESULTS}: run the official evaluator with --outfile {path}")
        items = self.items()
        asked = {name: item for item in items for name in item.files}
        right: dict[str, bool] = {}
        for number, row in enumerate(json_lines(path), start=1):
            found = IMAGE.search(str(row.get("filename", "")).replace("\\", "/"))
            if not found or not isinstance(row.get("correct"), bool):
                raise UserError(f"{path}, line {number}, has no filename of a sample with correct true or false")
            fault = _other_prompt(row, asked.get(found[1]))
            if right.get(found[1], row["correct"]) != row["correct"]:
                fault = "says the opposite of an earlier line for the same image"
            if fault:
                raise UserError(f"{path}, line {number} ({found[1]}), {fault}: run the official evaluator again")
            right[found[1]] = row["correct"]
        require_all(path, right, [name for item in items for name in item.files], "image")
        results = []
        for tag in dict.fromkeys(item.category for item in items):
            part = [item for item in items if item.category == tag]
            values = [float(right[name]) for item in part for name in item.files]
            results.append(self.result(tag, part, values, self.method, ""))
        return self.scores(results)


def _other_prompt(row: Mapping[str, Any], item: Item | None) -> str:
    """How a line of results contradicts the prompt that its image is of; "" where it does not."""
    if item is None:
        return ""
    for name, own in (("tag", item.category), ("prompt", item.prompt)):
        if name in row and row[name] != own:
            return f"is of the {name} {row[name]!r}, and benchmark.prompts has {own!r} there"
    return ""


def metadata_fault(row: Any) -> str:
    """What keeps a line from being GenEval's metadata; "" where it is."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key] for key in ("tag", "prompt")):
        return 'has no texts "tag" and "prompt"'
    include = row.get("include")
    if not isinstance(include, list) or not include:
        return 'has no list "include"'
    for place, clause in enumerate([*include, *row.get("exclude", [])]):
        if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
            return "has a clause without a class"
        if not isinstance(clause.get("count"), int) or clause["count"] < 1:
            return f'asks for {clause["class"]!r} without a count of 1 or more under "count"'
        if "position" in clause and not _is_position(clause["position"], place):
            return f"has the position {clause['position']!r}, which is no relation to an earlier clause"
    return ""


def _is_position(position: Any, place: int) -> bool:
    return (
        isinstance(position, list)
        and len(position) == 2
        and isinstance(position[0], str)
        and isinstance(position[1], int)
        and 0 <= position[1] < place
    )
