"""Sweeps, searches and workspaces: folders of others, damaged files, spaces with nothing to choose."""

from __future__ import annotations

from typing import Any

from tests.campaign.case import Case, refused
from tests.campaign.files import HTML, summary

RUNS = {f"s/{n}/summary.json": summary(0.5 + n / 10, seed=n) for n in range(3)}


def runs(content: Any, *says: str) -> Case:
    """A sweep whose only run has this summary."""
    return Case("collect", ("sweep=bad",), ("sweep=bad", *says), files={"bad/0/summary.json": content})


CASES = [
    *refused(
        "collect",
        ("", "sweep is not set", "sweep=VALUE"),
        ("sweep=", "sweep= is empty", "name the file or folder"),
        ("sweep=nowhere", "sweep=nowhere", "give the one"),
        ("sweep=empty", "sweep=empty", "give the one"),
        ("sweep=empty/x.txt", "sweep=empty/x.txt", "give the one|folder"),
        ("sweep=failed", "none of the 1 runs is finished", "no licence"),
        ("sweep=s  judge=beauty", "judge=beauty", "choose of"),
        ("sweep=s  baseline=other", "baseline=other", "choose of"),
        ("sweep=s  measures=strict", "measures=strict", "a list"),
        ("sweep=s  seed=-1", "seed=-1", "from 0"),
        ("sweep=s  resamples=many", "resamples=many", "a whole number"),
        ("sweep=s  target=", "target= is empty", "name the file or folder"),
        ("sweep=s  target=empty/x.txt", "target=empty/x.txt", "name a folder"),
        ("sweep=s  target=mine", "target=mine", "name an empty or new folder"),
        files={
            **RUNS,
            "empty/x.txt": "x",
            "failed/0/error.txt": "Traceback\nRuntimeError: no licence\n",
            "mine/table.md": "mine",
        },
    ),
    Case(
        "collect",
        ("sweep=s", "resamples=100"),
        ("3 runs: 3 finished",),
        code=0,
        files=RUNS,
        leaves=("s/collected/table.md",),
    ),
    runs("", "none of the 1 runs", "unreadable|JSON"),
    runs(HTML, "none of the 1 runs", "unreadable|JSON"),
    runs("[]", "none of the 1 runs", "unreadable|list"),
    runs("{}", "none of the 1 runs", "unreadable|validation"),
    runs('{"validation": {}, "config": 3}', "sweep=bad", "unreadable|judge|finished"),
    runs("\x00" * 100, "none of the 1 runs", "unreadable|JSON"),
    *refused(
        "search",
        ("trials=2.5", r"trials=2\.5", "a whole number from 1"),
        ("jobs=0", "jobs=0", "a whole number from 1"),
        ("seeds=[]", "seeds", "a list that is not empty"),
        ("seeds=100", "seeds=100", "a list"),
        ("storage=mongo", "storage=mongo", "choose journal or sqlite"),
        ("storage=postgresql://nobody@localhost:1/x", "storage", "cannot be read"),
        ("storage=nosuch://x", "storage", "cannot be read"),
        ("+space.x={key:optimizer.lr}", r"space\.x", "choices, or low and high"),
        ("space.lr.low=1", r"space\.lr", "low must not be above high"),
        ("space.lr.low=0", r"space\.lr", "with log=true above 0"),
        ("space.lr.low=abc", r"space\.lr", "numbers"),
        ("space.lr.low=nan", r"space\.lr\.low=nan", "a finite number"),
        ("+space.x={key:seed,choices:[]}", r"space\.x\.choices", "give a list"),
        ("+space.x={key:seed,choices:3}", r"space\.x\.choices", "give a list"),
        ("+space.x={choices:[1]}", r"space\.x", "needs a key"),
        ("+space.x={key:seed,low:1,high:3,lg:true}", r"space\.x", "choices, or low and high"),
        ("+space.x=3", r"space\.x", "key|mapping"),
        ("sampler._target_=optuna.samplers.Nothing", "Nothing", "sampler|optuna"),
        ("name=", "name= is empty", "give the search a name"),
        ("folder=", "folder= is empty", "name the file or folder"),
        ("folder=mine", "folder=mine", "name an empty or new folder"),
        ("folder=mine/best.yaml", "folder=mine/best.yaml", "name a folder"),
        ("folder=page", "search.journal", "cannot be read"),
        ("folder=page_db", "search.db", "cannot be read"),
        files={"mine/best.yaml": "mine", "page/search.journal": HTML, "page_db/search.db": HTML},
    ),
    *refused(
        "dashboard",
        ("entity=b", "study is not set", "study=VALUE"),
        ("study=a", "entity is not set", "entity=VALUE"),
        ("study=a  entity=b  target=", "target= is empty", "name the file or folder"),
        ("study=a  entity=b  target=mine.json", "target=mine.json", "name another file"),
        ("study=a  entity=b  target=folder", "target=folder", "name another file"),
        ("study=a  entity=b  upload=true", "upload=true", "wandb login|WANDB_API_KEY"),
        ("study=a  entity=b  upload=maybe", "upload=maybe", "true or false"),
        ("study=a  entity=b  columns=[x]", "x", "docs/metrics.md|config:|summary:"),
        ("study=a  entity=b  sections.Result=3", r"sections\.Result|Result", "list|docs/metrics.md"),
        ("study=a  entity=b  +sections.Mine=[]", "Mine", "docs/metrics.md|metric"),
        ("study=a  entity=b  ~sections", "sections", "is not set|no such|give"),
        ("study=  entity=b", "study", "empty|name|give"),
        ("study=a  entity=", "entity", "empty|name|give"),
        files={"mine.json": '{"mine": 1}', "folder/x.txt": "x"},
        env={"WANDB_API_KEY": None, "HOME": "nowhere", "NETRC": "nowhere/netrc"},
    ),
]
