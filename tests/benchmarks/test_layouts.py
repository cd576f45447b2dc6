"""Exports as the official evaluators read them: names, order, counts, metadata."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from egrpo.benchmarks.t2i_compbench import LONGEST_NAME, file_stem
from tests.benchmarks.pieces import (
    COLORS,
    GENEVAL,
    SPATIAL,
    benchmark,
    contents,
    fill,
    geneval_prompts,
    picture,
    t2i_prompts,
    wise_prompts,
)


@pytest.fixture
def t2i(tmp_path):
    return benchmark("t2i_compbench", f"benchmark.prompts={t2i_prompts(tmp_path / 'prompts')}")


@pytest.fixture
def geneval(tmp_path):
    return benchmark("geneval", f"benchmark.prompts={geneval_prompts(tmp_path / 'metadata.jsonl')}")


def test_t2i_compbench_is_read_back_in_order_with_its_prompts(t2i, tmp_path):
    folder = fill(tmp_path / "out", t2i)
    for category, prompts in (("color", COLORS), ("spatial", SPATIAL)):
        names = [path.name for path in (folder / category / "samples").iterdir()]
        names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))  # as BLIP_vqa.py sorts
        assert [int(n.split("_")[1].split(".")[0]) for n in names] == list(range(10 * len(prompts)))  # UniDet's reading
        read = [name.split("_")[0] for name in names]
        for row, prompt in enumerate(prompts):
            assert set(read[row * 10 : row * 10 + 10]) == {prompt.replace("/", " ").replace("_", " ")}
    assert not t2i.check(folder)


def test_prompts_that_no_file_name_carries_are_told(t2i, tmp_path):
    folder = fill(tmp_path / "out", t2i)
    rows = [json.loads(line) for line in (folder / "egrpo" / "renamed.jsonl").read_text().splitlines()]
    assert rows == [{"key": "color/00001", "prompt": COLORS[1], "read_as": "a red orange car and a snake case sign"}]
    item = next(item for item in t2i.items() if item.key == "color/00001")
    assert item.prompt == COLORS[1]  # what is drawn and scored here


@pytest.mark.parametrize("prompt", ["word " * 80, "ü" * 300, "x" * 300, "a/b " * 90])
def test_long_prompts_fit_into_a_file_name(prompt):
    name = f"{file_stem(prompt.strip())}_000000.png"
    assert len(name.encode()) <= LONGEST_NAME and name.count("_") == 1 and "/" not in name
    assert len(name) > 100
    if " " in prompt and "/" not in prompt:
        assert set(name.split("_")[0].split()) == {"word"}  # ends at a word


def test_ordinary_prompts_are_left_alone():
    for prompt in (*SPATIAL, "The cat's hat, 50% off: a 'red' one?", "a\u00e9b  two  blanks"):
        assert file_stem(prompt) == prompt


def test_geneval_is_read_back_with_its_metadata(geneval, tmp_path):
    folder = fill(tmp_path / "out", geneval)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
    assert names == ["00000", "00001"]
    for name, row in zip(names, GENEVAL):
        assert json.loads((folder / name / "metadata.jsonl").read_text()) == row  # json.load in evaluate_images.py
        images = sorted(p.name for p in (folder / name / "samples").iterdir() if re.match(r"\d+\.png", p.name))
        assert images == ["0000.png", "0001.png", "0002.png", "0003.png"]
        with Image.open(folder / name / "grid.png") as grid:
            assert grid.size == (16, 16)
            assert grid.getpixel((8, 8)) == picture(geneval.items()[int(name)], 3).getpixel((0, 0))
    assert not geneval.check(folder)


def test_wise_is_named_by_prompt_id_and_sorted_into_its_parts(tmp_path):
    numbers = [1, 400, 401, 567, 568, 700, 701, 801, 1000]
    wise = benchmark("wise", f"benchmark.prompts={wise_prompts(tmp_path / 'prompts', *numbers)}")
    folder = fill(tmp_path / "out", wise)
    assert sorted(int(path.stem) for path in folder.glob("*.png")) == numbers
    parts = ["cultural"] * 2 + ["time"] * 2 + ["space"] * 2 + ["biology", "physics", "chemistry"]
    assert [item.category for item in wise.items()] == parts
    verified = benchmark("wise_verified", f"benchmark.prompts={tmp_path / 'prompts'}")
    parts = ["cultural"] * 2 + ["time"] + ["space"] * 2 + ["biology"] * 2 + ["physics", "chemistry"]
    assert [item.category for item in verified.items()] == parts


def test_shapes_leaves_seen_prompts_out():
    items = benchmark("shapes").items()
    assert len(items) == 640 and {item.category for item in items} == {"unseen_prompt", "unseen_composition"}
    assert len({file for item in items for file in item.files}) == 640


@pytest.mark.parametrize("name", ["t2i", "geneval"])
def test_an_interrupted_export_goes_on_and_ends_identical(name, request, tmp_path):
    of = request.getfixturevalue(name)
    whole = fill(tmp_path / "whole", of)
    parts = tmp_path / "parts"
    work = of.missing(parts)
    for item, number in reversed(work[::3]):
        of.write_image(parts, item, number, picture(item, number))
    half = parts / work[0][0].files[work[0][1]]
    half.write_bytes(half.read_bytes()[:-20])  # killed while it was written by other means
    assert 0 < len(of.missing(parts)) < len(work)
    fill(parts, of)
    assert contents(parts) == contents(whole)
    assert not of.missing(parts)


def test_what_belongs_beside_the_images_is_made_again(geneval, tmp_path):
    folder = fill(tmp_path / "out", geneval)
    before = contents(folder)
    (folder / "00000" / "metadata.jsonl").unlink()
    (folder / "00001" / "grid.png").unlink()
    assert [item.key for item, _ in geneval.missing(folder)] == ["00000", "00001"]
    assert contents(fill(folder, geneval)) == before
