"""The field's benchmarks: prompts in, a folder in the official layout checked and scored, results read back."""

from __future__ import annotations

from egrpo.benchmarks.base import Benchmark, FolderBenchmark, PromptBenchmark, Scorer
from egrpo.benchmarks.geneval import GenEval
from egrpo.benchmarks.items import FolderError, Item, Problem
from egrpo.benchmarks.judge import ChatJudge
from egrpo.benchmarks.manifest import Manifest
from egrpo.benchmarks.results import Result, Scores, ScoringError
from egrpo.benchmarks.rubric import Rubric
from egrpo.benchmarks.t2i_compbench import OfficialFile, T2ICompBench, ThreeInOne
from egrpo.benchmarks.table import Published, Table, TableLayout, build_table
from egrpo.benchmarks.wise import Wise

__all__ = [
    "Benchmark",
    "ChatJudge",
    "FolderBenchmark",
    "FolderError",
    "GenEval",
    "Item",
    "Manifest",
    "OfficialFile",
    "Problem",
    "PromptBenchmark",
    "Published",
    "Result",
    "Rubric",
    "Scorer",
    "Scores",
    "ScoringError",
    "T2ICompBench",
    "Table",
    "TableLayout",
    "ThreeInOne",
    "Wise",
    "build_table",
]
