"""Benchmarks: prompts and results of other layouts, folders drawn for others, judges that are not there."""

from __future__ import annotations

import json
from typing import Any

from tests.campaign.case import Case, refused
from tests.campaign.files import HTML, POINTER, geneval, picture, wise

GENEVAL = "benchmark=geneval  benchmark.prompts=p.jsonl  logger=none"
READ = f"{GENEVAL}  benchmark.images_per_prompt=1  export=false  score=false  hydra.run.dir=out"
WISE = "benchmark=wise  benchmark.prompts=w  logger=none"
ROW = {"filename": "00000/samples/0000.png", "correct": True, "tag": "single_object", "prompt": "a photo of a dog"}


def prompts(content: Any, *says: str) -> Case:
    """GenEval with this metadata."""
    return Case("evaluate", tuple(GENEVAL.split("  ")), ("p.jsonl", *says), files={"p.jsonl": content})


def results(content: Any, *says: str) -> Case:
    """Official GenEval results that do not fit."""
    files = {"p.jsonl": geneval(), "out/results.jsonl": content, "out/00000/samples/0000.png": picture}
    return Case("evaluate", tuple(READ.split("  ")), ("results.jsonl", *says), files=files)  # type: ignore[arg-type]


def wise_data(rows: Any, *says: str, name: str = "w/cultural.json") -> Case:
    """WISE with this data."""
    content = rows if isinstance(rows, str | bytes) else json.dumps(rows)
    return Case("evaluate", tuple(WISE.split("  ")), says, files={name: content})


CASES = [
    *refused(
        "evaluate",
        ("benchmark=geneval", "no prompts are named", "benchmark.prompts=PATH"),
        ("benchmark=t2i_compbench", "no prompts are named", "benchmark.prompts=PATH"),
        ("benchmark=wise", "no prompts are named", "benchmark.prompts=PATH"),
        ("benchmark=genevall", "genevall", "did you mean geneval"),
        ("benchmark=geneval  benchmark.prompts=nowhere", "nowhere does not exist", "benchmark.prompts=PATH"),
        ("benchmark=geneval  benchmark.prompts=folder", "folder is no file", "evaluation_metadata"),
        ("benchmark=geneval  benchmark.prompts=", r"benchmark\.prompts= is empty", "name the file"),
        ("benchmark=t2i_compbench  benchmark.prompts=folder", "folder has none of", "examples/dataset"),
        ("benchmark=wise  benchmark.prompts=folder", "holds no WISE prompts", "benchmark.prompts=FOLDER"),
        ("benchmark=shapes  benchmark.prompts=folder/x.txt", "split|x.txt", "category_key|add it"),
        ("benchmark=shapes  benchmark.category_key=part", "part", "category_key="),
        ("benchmark.images_per_prompt=0", "images_per_prompt=0", "from 1"),
        ("compare=[nowhere]", "nowhere", "score it|no such|has no"),
        ("compare=nowhere", "compare=nowhere", "a list"),
        ("compare=[folder]  export=false", "folder", "score it"),
        ("shard=3/2", "shard=3/2", "from shard=1/4"),
        ("export=false  score=false", "results|official", "run|score"),
        ("export=false  hydra.run.dir=nothing", "nothing", "export|missing|image"),
        files={"folder/x.txt": "a dog\n"},
    ),
    prompts("", "holds no prompts", "evaluation_metadata"),
    prompts(HTML, "line 1 is no JSON", "copy GenEval's file again"),
    prompts(POINTER, "line 1 is no JSON", "copy GenEval's file again"),
    prompts(geneval().encode("utf-16"), "UTF-8", "save it"),
    prompts(geneval(tag=None), "line 1", "copy"),
    prompts(geneval() + geneval(include=3), "line 2", "copy"),
    prompts(geneval(include=[{"class": "dog"}]), "line 1", "copy"),
    prompts(geneval(prompt="x" * 30_000), "characters", "prompt a line"),
    results("", r"lacks|no|empty", "official evaluator|score"),
    results(HTML, "results", "run the official evaluator again"),
    results(json.dumps({**ROW, "correct": "yes"}) + "\n", "line 1", "correct true or false"),
    results(json.dumps({**ROW, "prompt": "a cat"}) + "\n", "line 1", "run the official evaluator again"),
    results(json.dumps({**ROW, "tag": "colors"}) + "\n", "line 1", "run the official evaluator again"),
    results(json.dumps(ROW) + "\n" + json.dumps({**ROW, "correct": False}) + "\n", "line 2", "opposite"),
    results(json.dumps({**ROW, "filename": "x.png"}) + "\n", "line 1", "filename"),
    wise_data("[", "cultural.json", "copy WISE's file again"),
    wise_data([], "holds no WISE prompts", "benchmark.prompts=FOLDER"),
    wise_data([wise(), wise(Explanation=None)], "entry 1 has no Explanation", "copy WISE's file again"),
    wise_data([wise("1")], "entry 0 has the prompt_id '1'", "no whole number"),
    wise_data([wise(), wise(Prompt="another")], "stands for two prompts", "keep one set"),
    wise_data([wise(5000)], "prompt_id 5000 belongs to no part", "wise"),
    *refused(
        "evaluate",
        (f"{WISE}  export=false", "judge|image", "benchmark.judge|export|missing"),
        (f"{WISE}  benchmark.judge.retries=-1", r"retries=-1", "from 0"),
        (f"{WISE}  benchmark.judge.timeout=0", r"timeout=0", "above 0"),
        (f"{WISE}  +benchmark.judge.modl=x", r"benchmark\.judge\.modl", "did you mean model"),
        (f"{READ}  benchmark.limit=9", "no results.jsonl", "run the official evaluator"),
        (f"{GENEVAL}  export=false  hydra.run.dir=pages", "image", "export again|delete it|export"),
        (f"{GENEVAL}  hydra.run.dir=foreign  benchmark.images_per_prompt=1", "foreign holds images", "export=false"),
        files={
            "w/cultural.json": json.dumps([wise()]),
            "p.jsonl": geneval(),
            "pages/00000/samples/0000.png": HTML,
            "foreign/00000/samples/0000.png": picture,
        },
    ),
]
