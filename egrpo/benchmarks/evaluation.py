"""From an exported folder to its scores: what official evaluators left, and what is scored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from egrpo.base.errors import UserError
from egrpo.base.files import write_whole
from egrpo.benchmarks.base import FAILURES, Benchmark
from egrpo.benchmarks.export import require_prompts, told_label, told_manifest
from egrpo.benchmarks.items import FolderError
from egrpo.benchmarks.results import FILE, Scores, ScoringError
from egrpo.benchmarks.table import Table

TABLE_FILES = ("table.md", "table.tex", "table.csv")


@dataclass(frozen=True)
class Assessed:
    """Scores of a folder, and what could not be read or scored."""

    scores: Scores
    failures: Sequence[str]


def assess(folder: Path, benchmark: Benchmark, *, score: bool, read_back: bool, required: bool = False) -> Assessed:
    """Reads official results back, scores what can be scored here, and keeps both in `scores.json`.

    A failure of one loses nothing of the others, nor of what an earlier call found for the same images.

    Args:
        folder: The export.
        benchmark: Whose layout it has.
        score: Whether anything is scored here.
        read_back: Whether official results are read, where some lie in the folder.
        required: It is a failure where none do.

    Raises:
        UserError: the folder's images were drawn for other prompts.
    """
    manifest, failures = told_manifest(folder), []
    if manifest is not None:
        require_prompts(folder, manifest, benchmark.items())
    scores = _kept(folder, benchmark, Scores(benchmark.name, [], manifest=manifest))
    steps = [benchmark.read_back] if read_back and (required or benchmark.official_files(folder)) else []
    steps += [benchmark.score] if score else []
    for step in steps:
        try:
            scores = scores.merged(step(folder))
        except (ScoringError, FolderError) as error:
            scores = scores if error.scores is None else scores.merged(error.scores)
            failures.append(str(error))
        except FAILURES as error:
            failures.append(str(error))
    if scores.results:
        scores = replace(scores, manifest=manifest)
        scores.save(folder)
    return Assessed(scores, failures)


def _kept(folder: Path, benchmark: Benchmark, new: Scores) -> Scores:
    """What an earlier call found; `new` where there was none, or it is of other images."""
    if not (folder / FILE).is_file():
        return new
    before = Scores.load(folder)
    return before if (before.benchmark, before.manifest) == (benchmark.name, new.manifest) else new


def compared(folders: Sequence[str], benchmark: Benchmark) -> dict[str, Scores]:
    """Scores of other folders by the names of their rows.

    Raises:
        UserError: a folder has none, or those of another benchmark.
    """
    rows: dict[str, Scores] = {}
    for folder in map(Path, folders):
        scores = Scores.load(folder)
        if scores.benchmark != benchmark.name:
            raise UserError(
                f"compare: {folder} holds scores of {scores.benchmark}, not of {benchmark.name}; name folders of the "
                "same benchmark"
            )
        rows[_free(told_label(folder), rows, folder)] = scores
    return rows


def _free(name: str, taken: dict[str, Scores], folder: Path) -> str:
    return name if name not in taken else f"{name} ({folder})"


def beside(own: Mapping[str, Scores], others: Mapping[str, Scores]) -> dict[str, Scores]:
    """Own rows first, then the others; equal names are told apart."""
    return {**own, **{f"{name} (compared)" if name in own else name: row for name, row in others.items()}}


def save_table(folder: Path, table: Table) -> None:
    """`table.md`, `table.tex` and `table.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(TABLE_FILES, (table.markdown(), table.latex(), table.csv()), strict=True):
        write_whole(folder / name, text.encode())
