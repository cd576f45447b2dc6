"""Folders and prompts that cannot be used: each fault is named, with the mend."""

from __future__ import annotations

import json
import shutil

import pytest

from egrpo.benchmarks import FolderError
from tests.benchmarks.pieces import benchmark, fill, geneval_prompts, t2i_prompts, wise_prompts, wise_row


@pytest.fixture
def t2i(tmp_path):
    return benchmark("t2i_compbench", f"benchmark.prompts={t2i_prompts(tmp_path / 'prompts')}")


@pytest.fixture
def geneval(tmp_path):
    return benchmark("geneval", f"benchmark.prompts={geneval_prompts(tmp_path / 'metadata.jsonl')}")


def refused(of, folder, *texts):
    with pytest.raises(FolderError) as caught:
        of.score(folder)
    for text in (*texts, "mend: "):
        assert text in str(caught.value)
    return caught.value


def test_a_missing_category(t2i, tmp_path):
    folder = fill(tmp_path / "out", t2i)
    shutil.rmtree(folder / "spatial")
    error = refused(t2i, folder, "the category 'spatial' is missing: none of its 20 images")
    assert len(error.problems) == 1


def test_a_wrong_count(t2i, tmp_path):
    folder = fill(tmp_path / "out", t2i)
    lost = t2i.items()[0].files[3]
    (folder / lost).unlink()
    refused(t2i, folder, lost, "29 images of 'color' are there, 30 are expected")


def test_unreadable_empty_and_truncated_images(t2i, tmp_path):
    folder = fill(tmp_path / "out", t2i)
    bad = t2i.items()[1].files[:3]
    (folder / bad[0]).write_bytes(b"no image")
    (folder / bad[1]).write_bytes(b"")
    (folder / bad[2]).write_bytes((folder / bad[2]).read_bytes()[:-20])
    error = refused(t2i, folder, *bad, "cannot be read", "is empty")
    assert len(error.problems) == 3


@pytest.mark.parametrize("name", ["a green bench and a blue bowl_000099.png", "x_000000.png.partial", "notes.txt"])
def test_files_that_the_evaluator_would_count(t2i, tmp_path, name):
    folder = fill(tmp_path / "out", t2i)
    (folder / "color" / "samples" / name).write_text("")
    refused(t2i, folder, f"color/samples/{name}", "belongs to no prompt")


def test_a_folder_of_other_metadata(geneval, tmp_path):
    folder = fill(tmp_path / "out", geneval)
    (folder / "00001" / "metadata.jsonl").write_text("{}")
    (folder / "00007").mkdir()
    refused(geneval, folder, "00001/metadata.jsonl", "is not what the prompts say", "00007/", "belongs to no prompt")


def test_no_folder(t2i, tmp_path):
    refused(t2i, tmp_path / "nothing", "does not exist")


def test_problems_beyond_twenty_are_counted(t2i, tmp_path):
    folder = fill(tmp_path / "out", t2i)
    for item in t2i.items():
        for file in item.files[1:]:
            (folder / file).write_bytes(b"x")
    refused(t2i, folder, "... and 25 more")


@pytest.mark.parametrize("name", ["t2i_compbench", "geneval", "wise", "wise_verified"])
def test_prompts_must_be_named_and_there(name, tmp_path):
    with pytest.raises(ValueError, match=r"no prompts are named.*benchmark\.prompts="):
        benchmark(name).items()
    with pytest.raises(ValueError, match=r"nothing does not exist.*benchmark\.prompts="):
        benchmark(name, f"benchmark.prompts={tmp_path / 'nothing'}").items()


@pytest.mark.parametrize("name", ["t2i_compbench", "wise"])
def test_a_folder_without_prompts(name, tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"(has none of|holds no WISE prompts).*benchmark\.prompts="):
        benchmark(name, f"benchmark.prompts={tmp_path}").items()


def test_prompt_files_with_an_empty_line_or_in_another_encoding(tmp_path):
    of = benchmark("t2i_compbench", f"benchmark.prompts={tmp_path}")
    (tmp_path / "color_val.txt").write_text("a cat\n\na dog\n\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        of.items()
    (tmp_path / "color_val.txt").write_bytes(b"a caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        of.items()
    (tmp_path / "color_val.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        of.items()


@pytest.mark.parametrize(
    "line, text",
    [
        ("nonsense", "is no JSON"),
        ('{"tag": "x", "include": [{"class": "a", "count": 1}]}', 'has no texts "tag" and "prompt"'),
        ('{"tag": "x", "prompt": "p", "include": []}', 'has no list "include"'),
        ('{"tag": "x", "prompt": "p", "include": [{"class": "a"}]}', "without a count"),
        (
            '{"tag": "x", "prompt": "p", "include": [{"class": "a", "count": 1, "position": ["left of", 0]}]}',
            "no relation to an earlier clause",
        ),
    ],
)
def test_geneval_lines_are_named(tmp_path, line, text):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"tag": "x", "prompt": "p", "include": [{"class": "a", "count": 1}]}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"line 2") as caught:
        benchmark("geneval", f"benchmark.prompts={path}").items()
    assert text in str(caught.value)


def test_wise_entries_are_named(tmp_path):
    of = benchmark("wise", f"benchmark.prompts={wise_prompts(tmp_path, 1, 2)}")
    (tmp_path / "c.json").write_text(json.dumps([{**wise_row(3), "Explanation": ""}]))
    with pytest.raises(ValueError, match="entry 0 has no Explanation"):
        of.items()
    (tmp_path / "c.json").write_text(json.dumps([{**wise_row(2), "Prompt": "another"}]))
    with pytest.raises(ValueError, match="prompt_id 2 stands for two prompts"):
        of.items()
    (tmp_path / "c.json").write_text(json.dumps([wise_row(1001)]))
    with pytest.raises(ValueError, match="prompt_id 1001 belongs to no part"):
        of.items()
    (tmp_path / "c.json").write_text(json.dumps([wise_row(1), wise_row(2)]))  # merge.json repeats the others
    assert [item.key for item in of.items()] == ["1", "2"]
    (tmp_path / "c.json").write_text("[{")
    with pytest.raises(ValueError, match=r"c\.json cannot be read as JSON"):
        of.items()
