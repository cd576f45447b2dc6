"""Which images are asked for, and how their files are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from egrpo.data import PromptFileError
from egrpo.generation.requests import Request, batches, prompt_name, prompt_records, requests_for
from egrpo.types import PromptRecord

HOSTILE = [
    *("../../etc/passwd", "/", "a/b\\c", 'say "cheese"', "it's", "CON", "nul.", "ends in dots...", "   spaced   "),
    *(
        "🎉🎉",
        "日本の庭",
        "x" * 4000,
        "a\nb\tc",
        "\x00",
        "-rf *",
        "~",
        "$HOME `id`",
        "%s",
        "A Red Circle",
        "a red circle",
    ),
    *("a red  circle", "a-red-circle", "e\u0301", "\u00e9", "?*<>|:"),
]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_name_is_safe_for_any_prompt(prompt: str):
    name = Request(prompt, 7).file
    assert re.fullmatch(r"images/[a-z0-9]([a-z0-9-]*[a-z0-9])?_0007\.png", name) and len(name) < 90


def test_prompts_that_look_alike_have_names_of_their_own():
    names = {prompt_name(prompt) for prompt in HOSTILE}
    assert len(names) == len({name.lower() for name in names}) == len(HOSTILE)


def test_a_prompt_that_comes_again_counts_on():
    records = [PromptRecord("a"), PromptRecord("b", ["cat"], task_type="object"), PromptRecord("a")]
    found = requests_for(records, 2)
    assert [request.key for request in found] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("a", 3)]
    assert found[2].record == {"nouns": ["cat"], "task_type": "object"} and found[0].record == {}


def test_shards_are_a_partition_into_whole_batches():
    requests = requests_for([PromptRecord(str(i)) for i in range(11)], 3)
    parts = [batches(requests, 4, f"{i}/3") for i in (1, 2, 3)]
    assert batches(requests, 4) == [parts[i % 3][i // 3] for i in range(9)]
    assert sum(len(batch) for part in parts for batch in part) == 33


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_told(shard: str):
    with pytest.raises(ValueError, match="from shard=1/4 to shard=4/4"):
        batches([], 4, shard)


@pytest.mark.parametrize("count", [0, -1, 1.5, "4", True])
def test_numbers_that_make_no_sense_are_told(count):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        requests_for([PromptRecord("a")], count)
    with pytest.raises(ValueError, match=r"batch_size=.*whole number of at least 1"):
        batches([], count)


@pytest.mark.parametrize(
    "prompts, told",
    [
        ([], "give a file, or a list"),
        (None, "give a file, or a list"),
        ("  ", "is empty"),
        (["a", ""], "entry 2 of the list"),
        (["a", 3], "entry 2 of the list"),
        (["half a \ud83d"], "surrogate"),
        ("no/such/file.jsonl", "there is no such file.*a list of texts is written"),
    ],
)
def test_prompts_that_are_none_are_told(prompts, told: str):
    with pytest.raises(ValueError, match=told):
        prompt_records(prompts)


def test_files_are_read_whatever_is_in_them(tmp_path: Path):
    lines, text = tmp_path / "prompts.jsonl", tmp_path / "prompts.txt"
    lines.write_text('{"prompt": "a"}\n\n{"prompt": "../b", "nouns": ["b"], "task_type": "object", "id": 3}\n')
    assert [record.prompt for record in prompt_records(str(lines))] == ["a", "../b"]
    assert prompt_records(str(lines))[1].extra == {"id": 3}
    text.write_text("a\n\n  ../b  \n" + "x" * 4000 + "\n", encoding="utf-8")
    assert [len(record.prompt) for record in prompt_records(str(text))] == [1, 4, 4000]
    for content, told in ((b"", "holds no prompts"), (b"\n \n", "holds no prompts"), (b"a\n\xff\xfe\n", "not UTF-8")):
        text.write_bytes(content)
        with pytest.raises(PromptFileError, match=told):
            prompt_records(str(text))


def test_ten_thousand_prompts_are_quick(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {i % 9000}\n" for i in range(10_000)))
    requests = requests_for(prompt_records(str(path)), 4)
    assert len({request.file for request in requests}) == len(requests) == 40_000
