"""T2I-CompBench (Huang et al. 2023, arXiv 2307.06350, and its "++"): eight categories, ten images a prompt.

Facts of the official evaluators (github.com/Karine-Huang/T2I-CompBench): they sort the files of `CATEGORY/samples` by
the number after the last underscore, read the prompt as the text before the first, and take a file's place in that
order for its number. 3-in-1 pairs ten consecutive numbers with one line of the prompt file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from egrpo.base.errors import UserError
from egrpo.base.files import write_whole
from egrpo.base.lines import read_lines
from egrpo.benchmarks.base import FolderBenchmark, by_category, prompt_source
from egrpo.benchmarks.items import OWN, Item
from egrpo.benchmarks.result_files import first_of, numbered_scores
from egrpo.benchmarks.results import Result, Scores, ScoringError
from egrpo.types import PromptRecord

LONGEST_NAME = 255  # bytes of a file name on common file systems
TAIL = "_000000.png"
UNSAFE = {"/": " ", "_": " ", "\0": " "}  # no file name holds / or NUL; the evaluator ends a prompt at the first _
RENAMED = f"{OWN}/renamed.jsonl"
READ_BY_CLIP, CLIP_TOKENS = ("non_spatial", "complex"), 77  # categories that CLIP scores; tokens that it reads
NAMELESS = "prompt"  # in the file name of a prompt of which nothing else is left

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfficialFile:
    """Where an official evaluator leaves a category's scores.

    Args:
        method: Its name in the table.
        files: Paths within the category's folder; the first that is there is read.
        lowest: The lowest score that it gives: 0, or -1 for a cosine.
    """

    method: str
    files: Sequence[str]
    lowest: float = 0.0


@dataclass(frozen=True)
class ThreeInOne:
    """How the category `complex` is scored: attributes, relation and action, of which a prompt may lack one.

    Args:
        attribute, spatial, action: Names of scorers.
        without_action: File beside the prompts with those of attributes and spatial relations only.
        without_spatial: File with those of attributes and actions only.
        stand_in: In what this differs from the official evaluator.
    """

    attribute: str
    spatial: str
    action: str
    without_action: str = "complex_val_spatial.txt"
    without_spatial: str = "complex_val_action.txt"
    stand_in: str = ""


class T2ICompBench(FolderBenchmark):
    """The benchmark from the user's copy of `examples/dataset`.

    Args:
        prompts: Folder with `{category}_val.txt`; categories without a file are left out.
        categories: All there are, in order.
        images_per_prompt: Images a prompt, 10 officially.
        official: Category -> the files that official evaluators leave.
        three_in_one: How `complex` is scored here; None = it is not.
        settings: Those of `FolderBenchmark`.
    """

    name = "t2i_compbench"

    def __init__(
        self,
        prompts: str | Path | None,
        *,
        categories: Sequence[str],
        official: Mapping[str, OfficialFile],
        images_per_prompt: int = 10,
        three_in_one: ThreeInOne | None = None,
        **settings,
    ):
        super().__init__(**settings)
        if images_per_prompt < 1:
            raise UserError(f"benchmark.images_per_prompt={images_per_prompt}: give at least 1")
        self.prompts, self.categories = prompts, list(categories)
        self.images_per_prompt, self.official, self.three_in_one = images_per_prompt, dict(official), three_in_one

    def all_items(self) -> list[Item]:
        """Every prompt of every category there is: `{category}/samples/{prompt}_{number:06d}.png`.

        Raises:
            UserError: the folder has none of the files, or a file has an empty line or is not UTF-8.
        """
        items = []
        for category in self.categories:
            path = self._folder() / f"{category}_val.txt"
            if path.is_file():
                items += self._category(category, prompt_lines(path))
        if not items:
            raise UserError(
                f"{self._folder()} has none of {', '.join(f'{c}_val.txt' for c in self.categories)}: name your copy of "
                "T2I-CompBench's examples/dataset with benchmark.prompts=FOLDER"
            )
        return items

    def _folder(self) -> Path:
        return prompt_source(self.prompts, "T2I-CompBench's examples/dataset")

    def _category(self, category: str, prompts: Sequence[str]) -> list[Item]:
        items = []
        for row, prompt in enumerate(prompts):
            stem = file_stem(prompt)
            numbers = range(row * self.images_per_prompt, (row + 1) * self.images_per_prompt)
            files = tuple(f"{category}/samples/{stem}_{number:06d}.png" for number in numbers)
            record = PromptRecord(prompt, extra={"stem": stem})
            items.append(Item(f"{category}/{row:05d}", record, category, files))
        return items

    def warnings(self) -> list[str]:
        """Prompts at which the official CLIP_similarity.py fails, and with them their whole category."""
        found = []
        for item in self.items():
            tokens = 2 + clip_tokens(item.record.extra["stem"])
            if item.category in READ_BY_CLIP and tokens > CLIP_TOKENS:
                found.append(
                    f"the prompt {item.prompt!r} of {item.category} has about {tokens} tokens of CLIP, and above "
                    f"{CLIP_TOKENS} the official CLIP_similarity.py fails on the whole category: shorten it"
                )
        return found

    def write_image(self, folder, item, number, image) -> None:
        """See `Benchmark`; prompts that a file name cannot carry are told in `egrpo/renamed.jsonl`."""
        super().write_image(folder, item, number, image)
        if item.record.extra["stem"] != item.prompt and number == len(item.files) - 1:
            self._tell_renamed(folder)

    def renamed(self) -> list[Item]:
        """The items whose prompts the evaluator will not read as they are."""
        return [item for item in self.items() if item.record.extra["stem"] != item.prompt]

    def _tell_renamed(self, folder: Path) -> None:
        rows = [{"key": i.key, "prompt": i.prompt, "read_as": i.record.extra["stem"]} for i in self.renamed()]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = folder / RENAMED
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode())
            log.warning("%d prompts do not fit into file names; %s says how each is read", len(rows), path)

    def score(self, folder: Path) -> Scores:
        """See `Benchmark`; lists that 3-in-1 lacks are told before anything is scored."""
        if self.three_in_one and any(item.category == "complex" for item in self.items()):
            self._lists(self.three_in_one)
        return super().score(folder)

    def _lists(self, three: ThreeInOne) -> tuple[set[str], set[str]]:
        """Prompts without an action, and prompts without a spatial relation."""
        names = (three.without_action, three.without_spatial)
        action, spatial = (three_in_one_lines(self._folder() / name) for name in names)
        return action, spatial

    def score_category(self, folder: Path, category: str, items: Sequence[Item]) -> Result:
        """One category by its scorer, `complex` by three."""
        if category != "complex" or self.three_in_one is None:
            return super().score_category(folder, category, items)
        three = self.three_in_one
        names = (three.attribute, three.spatial, three.action)
        parts = [self.image_scores(folder, name, items) for name in names]
        action, spatial = self._lists(three)
        prompts = [item.prompt for item in items for _ in item.files]
        values = [
            three_in_one(prompt, *scores, without_action=action, without_spatial=spatial)
            for prompt, *scores in zip(prompts, *parts, strict=True)
        ]
        told = [self.told(name)[1] for name in names]
        return self.result(
            category, items, values, "3-in-1", "; ".join(dict.fromkeys(t for t in [three.stand_in, *told] if t))
        )

    def official_files(self, folder: Path) -> list[Path]:
        """See `Benchmark`."""
        found = [first_of(folder / category, official.files) for category, official in self.official.items()]
        return [path for path in found if path is not None]

    def read_back(self, folder: Path) -> Scores:
        """What official evaluators left in the categories' folders.

        Raises:
            UserError: no category has results.
            ScoringError: those of a category do not fit its images; the error holds the others.
        """
        results = []
        faults: dict[str, list[str]] = {}
        for category, items in by_category(self.items()).items():
            official = self.official.get(category)
            path = first_of(folder / category, official.files) if official else None
            if official is None or path is None:
                log.warning("no official results for %s in %s", category, folder)
                continue
            try:
                values = numbered_scores(path, sum(len(item.files) for item in items), official.lowest)
            except UserError as error:
                faults.setdefault(str(error), []).append(category)
                continue
            results.append(self.result(category, items, values, official.method, ""))
        if faults:
            raise ScoringError(self.scores(results), faults)
        if not results:
            wanted = ", ".join(f"{c}/{o.files[0]}" for c, o in self.official.items())
            raise UserError(f"{folder} holds no official results: run the official evaluators, which leave {wanted}")
        return self.scores(results)


def prompt_lines(path: Path) -> list[str]:
    """The prompts of one file: what stands before the first tab of each line, as the official generator reads it.

    Raises:
        UserError: a line before the last is empty, the file is not UTF-8, or it holds nothing.
    """
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    while lines and not lines[-1].strip():
        lines.pop()
    prompts = [line.split("\t")[0].strip() for line in lines]
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one a line")
    if "" in prompts:
        raise UserError(f"{path}: line {prompts.index('') + 1} is empty, and images are counted by lines: remove it")
    return prompts


def clip_tokens(text: str) -> int:
    """Tokens that CLIP makes of a text at least, without begin and end: one a word, a digit, or another sign."""
    pieces = re.findall(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\w\s]|_", text.lower())
    return sum(max(1, sum(not sign.isascii() for sign in piece)) for piece in pieces)


def file_stem(prompt: str) -> str:
    """The prompt as a file name can carry it and the official evaluator will read it.

    "/" and "_" become blanks; what is too long ends at a word; what leaves nothing is called "prompt".
    """
    if not set(prompt) & set(UNSAFE) and len(prompt.encode()) <= LONGEST_NAME - len(TAIL):
        return prompt
    text = " ".join("".join(UNSAFE.get(character, character) for character in prompt).split())
    room = LONGEST_NAME - len(TAIL)
    if len(text.encode()) <= room:
        return text or NAMELESS
    cut = text.encode()[: room + 1].decode(errors="ignore")
    return cut.rsplit(" ", 1)[0] if " " in cut else cut.encode()[:room].decode(errors="ignore")


def three_in_one_lines(path: Path) -> set[str]:
    """The prompts of a list for 3-in-1, in the form that it compares: lower case, up to the first full stop.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"3-in-1 needs {path.name} beside the prompts in {path.parent}: copy it from T2I-CompBench")
    return {_compared(line) for line in prompt_lines(path)}


def three_in_one(
    prompt: str,
    attribute: float,
    spatial: float,
    action: float,
    *,
    without_action: set[str],
    without_spatial: set[str],
) -> float:
    """The mean of those scores that say something about the prompt (official `3_in_1.py`)."""
    if _compared(prompt) in without_action:
        return (attribute + spatial) / 2
    if _compared(prompt) in without_spatial:
        return (attribute + action) / 2
    return (attribute + spatial + action) / 3


def _compared(prompt: str) -> str:
    return prompt.split(".")[0].lower()
