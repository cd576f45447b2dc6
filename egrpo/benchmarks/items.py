"""What a benchmark asks for, file by file: writing into its layout, finding what is missing, reading it back."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from egrpo.base.errors import UserError
from egrpo.data.records import LONGEST_PROMPT
from egrpo.types import PromptRecord

OWN = "egrpo"  # folder for what official evaluators must not see: manifest, answers of judges, files being written
PNG_END = b"IEND"
SHOWN = 20  # problems that a message lists


@dataclass(frozen=True)
class Item:
    """One prompt and the files that a benchmark expects of it; paths are relative to the exported folder, with /.

    `record.extra` holds what the benchmark's own prompt file says beside the prompt.
    """

    key: str  # unique within the benchmark
    record: PromptRecord
    category: str
    files: tuple[str, ...]  # one an image, in order
    side: Mapping[str, str] = field(default_factory=dict)  # path -> text that stands beside the images
    grid: str = ""  # path of one sheet of all its images; "" = none

    def __post_init__(self) -> None:
        if len(self.prompt) > LONGEST_PROMPT:
            raise UserError(
                f"the prompt {self.prompt[:40]!r}... of {self.category} has {len(self.prompt):,} characters, and "
                f"{LONGEST_PROMPT:,} are the most: give a file with a prompt a line"
            )

    @property
    def prompt(self) -> str:
        return self.record.prompt


@dataclass(frozen=True)
class Problem:
    """What is wrong with an exported folder, and how to mend it."""

    where: str
    fault: str
    mend: str
    category: str = ""  # the only one that it keeps from being scored; "" = all

    def __str__(self) -> str:
        return f"{self.where}: {self.fault}; mend: {self.mend}"


class FolderError(UserError):
    """An exported folder that cannot be scored; `problems` holds every fault.

    Args:
        folder: The export.
        problems: What is wrong with it.
        scores: Those of the categories that nothing is wrong with; None = none were taken.
        others: Further sentences, of categories whose scorers failed.
    """

    def __init__(
        self, folder: Path, problems: Sequence[Problem], scores: Any = None, others: Sequence[str] = ()
    ) -> None:
        self.problems, self.scores = list(problems), scores
        lines = [f"  {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN} more")
        super().__init__("\n".join([f"{folder} cannot be scored as it is:", *lines, *others]))


def write_image(folder: Path, item: Item, number: int, image: Image.Image) -> None:
    """Writes the item's image `number` (from 0), its side files, and its grid once all its images are there.

    A file appears under its name only when it is whole. What is written does not depend on the order of calls, nor on
    whether an earlier export was interrupted.
    """
    _save(folder, item.files[number], image)
    for path, text in item.side.items():
        _replace(folder, path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
    if item.grid and not any(image_fault(folder / path) for path in item.files):
        _save(folder, item.grid, grid([folder / path for path in item.files]))


def missing_images(folder: Path, items: Sequence[Item]) -> list[tuple[Item, int]]:
    """Item and number of every image that is not there, or not whole: what an export has yet to draw.

    An item without its side files or grid counts with its last image.
    """
    found = []
    for item in items:
        numbers = [n for n, path in enumerate(item.files) if image_fault(folder / path)]
        unfinished = [path for path in (*item.side, item.grid) if path and not (folder / path).is_file()]
        if unfinished and not numbers:
            numbers = [len(item.files) - 1]
        found += [(item, number) for number in numbers]
    return found


def check_images(folder: Path, items: Sequence[Item]) -> list[Problem]:
    """Everything that keeps `folder` from being the export of `items`: missing, unreadable and surplus files."""
    if not folder.is_dir():
        return [Problem(str(folder), "does not exist", "export into it first, or name the exported folder")]
    problems = []
    parts: dict[str, list[Item]] = {}
    for item in items:
        parts.setdefault(item.category, []).append(item)
    for category, part in parts.items():
        wanted = [path for item in part for path in item.files]
        absent = [path for path in wanted if not (folder / path).is_file()]
        if len(absent) == len(wanted):
            fault = f"the category {category!r} is missing: none of its {len(wanted)} images is there"
            problems.append(Problem(str(folder), fault, "export it, or leave its prompts out", category))
            continue
        if absent:
            fault = f"{len(wanted) - len(absent)} images of {category!r} are there, {len(wanted)} are expected"
            problems.append(Problem(absent[0], fault, "run the export again: it draws what is missing", category))
        problems += [replace(problem, category=category) for problem in _faults_of_files(folder, part)]
    return problems + _surplus(folder, items)


def image_fault(path: Path) -> str:
    """Why an image cannot be read; "" where it can."""
    return checked_image(path)[1]


def checked_image(path: Path) -> tuple[bytes, str]:
    """A file's content, and why it is no whole image, "" where it is one."""
    data, _, fault = _decoded(path)
    return data, fault


def _decoded(path: Path) -> tuple[bytes, Image.Image | None, str]:
    """Content, image and fault of a file, which is read and decoded once."""
    data = b""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.format == "PNG" and PNG_END not in data[-64:]:
                return data, None, "ends before its end, perhaps it is half-written"  # PIL reads on if pixels are there
            return data, image, ""
    except FileNotFoundError:
        return data, None, "is not there"
    except (OSError, SyntaxError, ValueError) as error:  # PIL tells broken PNGs by SyntaxError too
        return data, None, f"cannot be read ({error})" if data or not path.is_file() else "is empty"


def read_images(folder: Path, paths: Sequence[str]) -> list[Image.Image]:
    """The images in RGB, off the disk.

    Raises:
        UserError: one cannot be read; the message names it.
    """
    images = []
    for path in paths:
        _, image, fault = _decoded(folder / path)
        if image is None:
            raise UserError(f"the image {folder / path} {fault}: delete it and run the export again")
        images.append(image.convert("RGB"))
    return images


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, evenly over all of them and always the same; None = all."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[place * len(items) // limit] for place in range(limit)]


def in_turn(items: Sequence[Item], size: int) -> Iterator[list[tuple[Item, str]]]:
    """Item and path of every image, at most `size` at a time, items and files in order."""
    pairs = [(item, path) for item in items for path in item.files]
    for first in range(0, len(pairs), size):
        yield pairs[first : first + size]


def grid(paths: Sequence[Path]) -> Image.Image:
    """One sheet of all images, as nearly square as their number allows, row by row."""
    images = read_images(Path(), [str(path) for path in paths])
    columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    return sheet


def _faults_of_files(folder: Path, items: Sequence[Item]) -> list[Problem]:
    problems = []
    for item in items:
        for path in item.files:
            fault = image_fault(folder / path)
            if fault and fault != "is not there":
                problems.append(Problem(path, fault, "delete it and run the export again"))
        for path, text in item.side.items():
            if not (folder / path).is_file():
                problems.append(Problem(path, "is not there", "run the export again"))
            elif (folder / path).read_text(encoding="utf-8") != text:
                fault = f"is not what the prompts say of {item.key!r}"
                problems.append(Problem(path, fault, "export into a new folder, or name the prompts it was made from"))
    return problems


def _surplus(folder: Path, items: Sequence[Item]) -> list[Problem]:
    """Files beside the images that no prompt asks for: official evaluators would count them, or fail on them."""
    wanted = {path for item in items for path in item.files}
    folders: dict[str, set[str]] = {}  # and the categories in each
    for item in items:
        for path in item.files:
            folders.setdefault(os.path.dirname(path), set()).add(item.category)
    problems = []
    for name, categories in folders.items():
        if not name:  # images lie in the export's root, beside results and notes: other images only
            names = [p.name for p in folder.glob("*.png")]
        else:
            names = os.listdir(folder / name) if (folder / name).is_dir() else []
        strange = sorted(path for path in (f"{name}/{n}".lstrip("/") for n in names) if path not in wanted)
        if strange:
            fault = f"belongs to no prompt (one of {len(strange)} such files), and the official evaluator would read it"
            mend = "delete them, or name the prompts that they were drawn for"
            problems.append(Problem(strange[0], fault, mend, min(categories) if len(categories) == 1 else ""))
    return problems


def _save(folder: Path, path: str, image: Image.Image) -> None:
    _replace(folder, path, lambda partial: image.convert("RGB").save(partial, "PNG"))


def _replace(folder: Path, path: str, write) -> None:
    """Writes elsewhere in the folder first: a killed export must leave no half a file where an evaluator looks."""
    target, partial = folder / path, folder / OWN / "partial" / str(os.getpid())
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    write(partial)
    os.replace(partial, target)
