"""The campaign's runner judges as it should, and a cheap cut of its cases ends clearly; `make campaign` tries all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.campaign.case import Case
from tests.campaign.cases import CASES
from tests.campaign.runner import KINDS, judge

CHEAP = [
    *("collect sweep=nowhere", "collect sweep=empty/x.txt", "dashboard study=a entity=b target=mine.json"),
    *("download what=everything", "train study.name=${x", "train =1", "train cot=true"),
    *("convert kind=hps source=nowhere target=out", "export run=nowhere", "search storage=mongo"),
]
COMMANDS = {
    *("train", "generate", "evaluate", "analyze", "collect", "search"),
    *("dashboard", "plan", "convert", "download", "export"),
}


def case(*words: str, says: tuple[str, ...] = ("x", "x"), **rest) -> Case:
    return Case("collect", words, says, **rest)


def test_every_command_is_tried():
    count = Counter(c.command for c in CASES)
    assert set(count) == COMMANDS and min(count.values()) >= 10 and len(CASES) >= 150


def test_every_refusal_names_the_fault_and_the_remedy():
    assert all(len(c.says) >= 2 or not c.code for c in CASES)


@pytest.mark.parametrize("name", CHEAP)
def test_a_cheap_cut(name):
    (chosen,) = [c for c in CASES if c.name == name]
    judged = judge(chosen)
    assert judged.kind == "clear", judged.why


WAYS = {
    "clear": case("sweep=nowhere", says=("sweep=nowhere", "give the one")),
    "unclear": case("sweep=nowhere", says=("sweep=nowhere", "buy another disk")),
    "silent": case("--version", says=("x", "x")),
    "lost": case("sweep=nowhere", says=("sweep=nowhere", "give the one"), leaves=("runs.csv",)),
    "hang": case("sweep=nowhere", says=("sweep", "give"), limit=1e-3),
}


@pytest.mark.parametrize("kind", WAYS)
def test_the_runner_tells_the_kinds_apart(kind):
    assert judge(WAYS[kind]).kind == kind and kind in KINDS


def test_a_traceback_and_a_changed_file_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("egrpo.studies.runs.read_runs", lambda sweep: 1 / 0)
    judged = judge(case("sweep=s"))
    assert judged.kind == "traceback" and "ZeroDivisionError" in judged.why
    monkeypatch.setattr("egrpo.studies.runs.read_runs", lambda sweep: Path("s/mine.txt").unlink())
    judged = judge(case("sweep=s", files={"s/mine.txt": "mine"}))
    assert judged.kind == "lost" and "mine.txt" in judged.why
