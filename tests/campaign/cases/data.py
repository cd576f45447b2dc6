"""Prompt files and lists: damaged, foreign, far too large, and odd but good."""

from __future__ import annotations

from tests.campaign.case import Case, refused
from tests.campaign.files import HTML, POINTER, line, picture

TRAIN = ("data=file", "data.train=p.jsonl", "judge=none")


def bad(content: object, *says: str, name: str = "p.jsonl") -> Case:
    """Training with a prompt file that cannot be used."""
    words = (TRAIN[0], f"data.train={name}", TRAIN[2])
    return Case("train", words, (name.replace(".", r"\."), *says), files={name: content})  # type: ignore[dict-item]


def drawn(prompts: str, *says: str, files: dict | None = None, count: int = 1) -> Case:
    """Prompts that are odd, but good: as many images must be drawn."""
    words = (f"prompts={prompts}", "num_images=1", "cot=off", "sheets=false", "hydra.run.dir=out")
    leaves = ("out/manifest.json", "out/images/*.png")
    return Case("generate", words, (f"{count} (new )?images", *says), code=0, files=files or {}, leaves=leaves)


CASES = [
    bad("", "holds no prompts", "one JSON object a line"),
    bad("\n\n  \n", "holds no prompts", "one JSON object a line"),
    bad(HTML, "line 1: is not JSON", "one complete JSON object"),
    bad(POINTER, "is not JSON|LFS", "JSON object|lfs pull"),
    bad("[" + line().strip() + "]", "line 1: is a list", "write"),
    bad(line() + line()[:-9], "line 2: is not JSON", "mend"),
    bad(line().encode("utf-16"), "is UTF-16", "save it as UTF-8"),
    bad(b'{"prompt": "caf\xe9"}\n', "is not UTF-8", "save the file as UTF-8"),
    bad("null\n", "line 1", "write"),
    bad("3\n", "line 1: is a number", "write"),
    bad("[" * 100_000 + "\n", "line 1|bytes", "write"),
    bad('{"prompt": ' + "9" * 5000 + "}\n", "line 1", "mend"),
    bad(line(prompt=None), 'has no "prompt"', "add"),
    bad(line(prompt=" "), '"prompt" is empty', "remove the line"),
    bad(line(prompt=["a"]), '"prompt" is a list', "quotes"),
    bad(line(prompt="a\u0000b"), r"control character U\+0000", "remove it"),
    bad('{"prompt": "\\ud83d", "nouns": [], "task_type": "non"}\n', "surrogate", "remove it"),
    bad(line(prompt="a " * 20_001), "characters", "shorten it"),
    bad("x" * 11_000_000, "bytes", "shorten it"),
    bad("x" * 11_000_000, "bytes", "shorten it", name="p.txt"),
    bad(b"caf\xe9\n", "is not UTF-8", "save the file as UTF-8", name="p.txt"),
    bad(line(task_type="colour"), "task_type", "color"),
    bad(line(task_type=None), 'has no "task_type"', "add one of"),
    bad(line(nouns="circle"), "nouns", "write|list"),
    bad(line(nouns=None), "nouns", "add|list"),
    bad(line(nouns=[3]), "nouns", "mend"),
    bad(line(task_type="spatial"), "spatial_info", "mend"),
    bad(line(task_type="numeracy"), "numeracy_info", "mend"),
    bad(line(task_type="numeracy", numeracy_info=[{"obj_name": "circle", "num": "2"}]), "num", "unquoted"),
    bad(line(task_type="numeracy", numeracy_info=[{"obj_name": "circle", "num": -2}]), "num", "1 or more"),
    bad("".join(line(task_type="x") for _ in range(100)), "100 bad lines", "more problems|mend"),
    *refused(
        "train",
        ("data=file", r"data\.train", r"set data\.train=FILE"),
        ("data=file  data.train=nowhere.jsonl", r"nowhere\.jsonl does not exist", "name an existing"),
        ("data=file  data.train=.", "is a folder", "name the .jsonl file"),
        ("data=file  data.train=", r"data\.train= is empty", "name the file"),
        ("data=file  data.train=3", r"data\.train=3|does not exist", "text|name an existing"),
        ("data.val=nowhere.jsonl", r"nowhere\.jsonl does not exist", "name an existing"),
        ("data=file  data.train=package:egrpo/no.jsonl", r"no\.jsonl", "name an existing"),
        ("data=file  data.train=/dev/null", "/dev/null", "prompt a line|JSON object a line|no file"),
    ),
    # The oracle judges only prompts of the shapes world.
    Case("train", ("data=file", "data.train=p.jsonl"), ("scene", "reward=|judge="), files={"p.jsonl": line() * 20}),
    *refused(
        "generate",
        ("", "prompts is not set", "prompts=VALUE"),
        ("prompts=", "prompts= is empty", "name the file|give a file"),
        ("prompts=[]", "prompts=", "give a file, or a list"),
        ("prompts=nowhere.txt", r"nowhere\.txt", "does not exist|no such|give"),
        ("prompts=[' ']", "entry 1", "write the text|remove"),
        ("prompts=[3]", "entry 1", "quotes"),
        ("prompts=[null]", "entry 1", "add|text"),
        ("prompts={a:b}", "prompts=", "give a file"),
        ("prompts=3", "prompts=3", "give"),
        ("prompts=a red circle", "prompts=a red circle", r"list|\["),
        ("prompts=a red circle, a cat", "prompts", "quotes for the shell"),
        ("prompts=[a]  shard=5/4", "shard=5/4", "from shard=1/4"),
        ("prompts=[a]  shard=0/4", "shard=0/4", "from shard=1/4"),
        ("prompts=[a]  shard=half", "shard=half", "from shard=1/4"),
        ("prompts=[a]  shard=1", "shard=1", "text"),
        ("prompts=[a]  model_device=gpu", "device=gpu", "give auto, cpu"),
        ("prompts=[a]  model_device=cuda:99", "device=cuda:99", "give auto or cpu"),
        ("prompts=.", r"prompts=\.|prompt file \.", "file"),
        ("prompts=p.png", r"p\.png", "UTF-8|JSON"),
        files={"p.png": picture},
    ),
    drawn('["a red circle"]'),
    drawn('["_"]'),
    drawn('["<eos><pad><begin_of_image>"]'),
    drawn('["圆 🙂 ../../etc/passwd"]'),
    drawn('["CON"]'),
    drawn('["a red circle","a red circle"]', "more than once", count=2),
    drawn("p.txt", files={"p.txt": "\ufeffa red circle\r\n\r\n"}),
    drawn("p.txt", files={"p.txt": "a red\u2028circle\u0085on top\n"}),
    drawn("p.jsonl", files={"p.jsonl": '\ufeff{"prompt": "a red\u2028circle", "nouns": [], "task_type": "non"}\r\n'}),
    drawn("'p q#1.txt'", files={"p q#1.txt": "a red circle"}),
]
