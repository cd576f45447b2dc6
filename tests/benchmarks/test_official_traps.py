"""Where the official code and files differ from what one would write: what is asked, read, refused and told."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from PIL import Image

from egrpo.base.errors import UserError
from egrpo.base.lines import read_lines
from egrpo.benchmarks import FolderError, ScoringError
from egrpo.benchmarks.blip_vqa import questions_of
from egrpo.benchmarks.evaluation import assess
from egrpo.benchmarks.export import FILE, prompts_hash, scored_since_drawn, scoring
from egrpo.benchmarks.items import image_fault, read_images
from egrpo.benchmarks.language import RuleParser
from egrpo.benchmarks.manifest import Manifest
from egrpo.benchmarks.t2i_compbench import clip_tokens, file_stem, prompt_lines
from tests.benchmarks.pieces import GENEVAL, benchmark, fill, geneval_prompts, t2i_prompts, wise_prompts, wise_row
from tests.benchmarks.test_read_back import answers, geneval_lines, lines, wise_line, write


def told(folder, of, **changes):
    """Leaves the manifest that an export of the benchmark's prompts would."""
    settings = {"cot": True, "cfg_weight": 1.0, "temperature": 1.0, "template": "", "seed": 0}
    count = max(len(item.files) for item in of.items())
    manifest = Manifest("m", prompts_hash(of.items()), images_per_prompt=count, **settings)
    content = {"label": "m", "device": "cpu", "manifest": {**asdict(manifest), **changes}}
    return write(folder / FILE, json.dumps(content))


def test_blip_asks_nothing_about_places():
    class Chunks(RuleParser):
        def noun_chunks(self, text):
            return text.split(", ")

    told = questions_of(Chunks(), "top, the side, a red hat, the left, the right, The left, the top")
    assert told == ["a red hat?", "the left?", "the top?"]  # as official: those four, spelt so
    assert len(questions_of(Chunks(), "top, " + ", ".join(f"cat {i}" for i in range(10)))) == 8
    assert questions_of(RuleParser(), "The red hat was on top of the brown coat rack.") == [
        "the red hat?",
        "the brown coat rack?",
    ]


def test_a_folder_is_judged_by_the_prompts_it_was_drawn_for(tmp_path):
    of = benchmark("geneval", f"benchmark.prompts={geneval_prompts(tmp_path / 'a.jsonl')}")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GENEVAL[::-1]))
    other = benchmark("geneval", f"benchmark.prompts={tmp_path / 'b.jsonl'}")
    out = tmp_path / "out"
    told(out, of)
    write(out / "results.jsonl", geneval_lines([True, True, False, True, False, False, True, False]))
    assert len(assess(out, of, score=False, read_back=True).scores.results) == 2
    with pytest.raises(UserError, match="were drawn for other prompts, in another order or number"):
        assess(out, other, score=False, read_back=True)
    told(out, of, images_per_prompt=3)
    with pytest.raises(UserError, match="were drawn for other prompts"):
        assess(out, of, score=False, read_back=True)
    with pytest.raises(UserError, match=r"line 1 \(.*\), is of the tag 'counting', and benchmark.prompts has 'single"):
        other.read_back(out)  # without a manifest the results' own lines tell


def test_lines_that_contradict_each_other_are_refused(tmp_path):
    of = benchmark("geneval", f"benchmark.prompts={geneval_prompts(tmp_path / 'a.jsonl')}")
    right = geneval_lines([True] * 8)
    path = write(tmp_path / "out" / "results.jsonl", right + right)
    assert [result.score for result in of.read_back(tmp_path / "out").results] == [1.0, 1.0]
    path.write_text(right + geneval_lines([False] + [True] * 7))
    with pytest.raises(UserError, match=r"line 16 \(00000/samples/0000.png\), says the opposite of an earlier line"):
        of.read_back(tmp_path / "out")


def test_one_set_of_wise_is_not_judged_against_another(tmp_path):
    of = benchmark("wise", f"benchmark.prompts={wise_prompts(tmp_path / 'p', 1, 2)}")
    rows = [wise_line(1), {**wise_line(2), "Subcategory": "Festival"}]
    write(tmp_path / "out" / "a_scores.jsonl", lines(rows))
    with pytest.raises(
        UserError, match=r"prompt_id 2 has the Subcategory 'Festival', and benchmark\.prompts has 'any'"
    ):
        of.read_back(tmp_path / "out")


def test_rewritten_prompts_beside_the_original_ones_are_not_used(tmp_path):
    folder = wise_prompts(tmp_path / "p", 1, 2)
    for name in ("a", "b"):
        rows = [{**row, "Prompt": "easier"} for row in json.loads((folder / f"{name}.json").read_text())]
        (folder / f"{name}_rewrite.json").write_text(json.dumps(rows))
    of = benchmark("wise", f"benchmark.prompts={folder}")
    assert [item.prompt for item in of.items()] == [wise_row(n)["Prompt"] for n in (1, 2)]
    alone = benchmark("wise", f"benchmark.prompts={folder / 'a_rewrite.json'}")
    assert [item.prompt for item in alone.items()] == ["easier"]


def test_a_result_file_that_cannot_be_used_loses_no_other_category(tmp_path):
    prompts = t2i_prompts(tmp_path / "p", color=["a cat"], shape=["a dog"])
    of = benchmark("t2i_compbench", f"benchmark.prompts={prompts}")
    write(tmp_path / "out/color/annotation_blip/vqa_result.json", json.dumps(answers(10)))
    write(tmp_path / "out/shape/annotation_blip/vqa_result.json", json.dumps(answers(9)))
    with pytest.raises(ScoringError, match=r"shape of t2i_compbench.*scores 9 of 10 images") as caught:
        of.read_back(tmp_path / "out")
    assert [result.category for result in caught.value.scores.results] == ["color"]
    found = assess(tmp_path / "out", of, score=False, read_back=True)
    assert [result.category for result in found.scores.results] == ["color"] and len(found.failures) == 1


def test_an_image_that_cannot_be_used_loses_no_other_category(tmp_path, monkeypatch):
    prompts = t2i_prompts(tmp_path / "p", color=["a cat"], shape=["a dog"])
    of = benchmark("t2i_compbench", f"benchmark.prompts={prompts}")
    folder = fill(tmp_path / "out", of)
    (folder / of.items()[1].files[0]).write_bytes(b"no image")
    monkeypatch.setattr(of, "image_scores", lambda folder, name, items: [0.5] * sum(len(i.files) for i in items))
    monkeypatch.setattr(of, "told", lambda name: (name, ""))
    with pytest.raises(FolderError, match="cannot be read") as caught:
        of.score(folder)
    assert [result.category for result in caught.value.scores.results] == ["color"]
    assert assess(folder, of, score=True, read_back=False).scores.results[0].score == 0.5


def test_a_negative_cosine_is_a_score(tmp_path):
    of = benchmark("t2i_compbench", f"benchmark.prompts={t2i_prompts(tmp_path / 'p', non_spatial=['a cat'])}")
    rows = [{"question_id": i, "answer": -0.02} for i in range(10)]
    path = write(tmp_path / "out/non_spatial/annotation_clip/vqa_result.json", json.dumps(rows))
    assert of.read_back(tmp_path / "out").results[0].score == pytest.approx(-0.02)
    path.write_text(json.dumps([{**row, "answer": -1.5} for row in rows]))
    with pytest.raises(ValueError, match=r"the score -1\.5, outside -1\.\.1"):
        of.read_back(tmp_path / "out")


def test_only_ends_of_lines_end_a_prompt(tmp_path):
    path = tmp_path / "color_val.txt"
    path.write_bytes("\ufeffa cat\u2028on a mat\r\na\x85dog\x0c\nan owl\u2029here\n\n".encode())
    assert prompt_lines(path) == ["a cat\u2028on a mat", "a\x85dog", "an owl\u2029here"]
    rows = [{**row, "prompt": row["prompt"] + "\u2028\x85\u2029."} for row in GENEVAL]
    file = tmp_path / "metadata.jsonl"
    file.write_text("\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    of = benchmark("geneval", f"benchmark.prompts={file}")
    assert [item.prompt for item in of.items()] == [row["prompt"] for row in rows]
    write(tmp_path / "x", "").write_text("\ufeffa\n\nb", encoding="utf-8")
    assert read_lines(tmp_path / "x") == ["a", "", "b"]


def test_prompts_that_clip_cannot_read_are_told(tmp_path):
    long = "a b c d e f g h i j " * 8
    of = benchmark(
        "t2i_compbench", f"benchmark.prompts={t2i_prompts(tmp_path / 'p', non_spatial=[long, 'a cat'], color=[long])}"
    )
    (told,) = of.warnings()
    assert "non_spatial" in told and "about 82 tokens" in told and "fails on the whole category" in told
    assert clip_tokens("It's 42 cats, 日本!") == 9  # it 's 4 2 cats , 日 本 !


def test_a_prompt_of_nothing_but_underscores_has_a_name():
    assert file_stem("_") == file_stem("/_/") == "prompt" and file_stem("a_b") == "a b"


def test_images_are_read_and_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args: opened.append(file) or real(file, *args))
    (image,) = read_images(tmp_path, ["a.png"])
    assert image.getpixel((0, 0)) == (255, 0, 0) and len(opened) == 1 and str(path) not in map(str, opened)
    path.write_bytes(path.read_bytes()[:-20])
    assert image_fault(path) and image_fault(tmp_path / "b.png") == "is not there"


def test_of_two_processes_that_end_together_one_scores(tmp_path):
    of = benchmark("geneval", f"benchmark.prompts={geneval_prompts(tmp_path / 'a.jsonl')}")
    out = fill(tmp_path / "out", of)
    told(out, of)
    with scoring(out) as first, scoring(out) as second:
        assert first and not second
    with scoring(out) as again:
        assert again
    assert not scored_since_drawn(out, of)
    write(out / "scores.json", "{}")
    assert scored_since_drawn(out, of)
