"""Tables say what is official, what stands in, where numbers are from, and what cannot be compared."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from egrpo.benchmarks import Manifest, Result, Scores, build_table
from egrpo.benchmarks.manifest import differences, model_hash, text_hash, versions, warning
from egrpo.benchmarks.results import with_overall
from tests.benchmarks.pieces import benchmark

MANIFEST = Manifest(
    model="a", prompts="p", cot=True, cfg_weight=5.0, temperature=1.0, template="t", seed=0, images_per_prompt=10,
    drawing={"top_k": None}, versions={"torch": "2.13"},
)  # fmt: skip


def result(category: str, value: float, method: str = "BLIP-VQA", stand_in: str = "") -> Result:
    values = {str(i): value + 0.1 * (-1) ** i for i in range(20)}
    return Result(category, method, values, 200, stand_in, 300)


def rows_of(table) -> dict[tuple[str, str], dict[str, str]]:
    return {(row[0], row[1]): dict(zip(table.header, row)) for row in table.rows}


def test_official_and_stand_in_are_rows_of_their_own_and_published_ones_follow():
    layout = benchmark("t2i_compbench").table
    scores = Scores("t2i_compbench", [result("color", 0.8), result("color", 0.7, stand_in="of ours | really")])
    table = build_table(layout, {"mine": scores})
    rows = rows_of(table)
    assert list(rows)[:2] == [("mine", "official: BLIP-VQA"), ("mine", "stand-in: BLIP-VQA")]
    assert rows["mine", "official: BLIP-VQA"]["Color"].startswith("80.00 [")
    assert rows["mine", "stand-in: BLIP-VQA"]["Color"].startswith("70.00 [")
    assert rows["mine", "official: BLIP-VQA"]["Shape"] == ""
    published_by = {
        "Janus-Pro-7B": ["63.59", "35.28", "49.36", "20.61", "30.85", "35.59"],
        "T2I-R1": ["81.30", "58.52", "72.43", "33.78", "30.90", "39.93"],
    }
    published = ("Color", "Shape", "Texture", "Spatial", "Non-spatial", "Complex")
    assert [rows["Janus-Pro-7B", "published"][c] for c in published] == published_by["Janus-Pro-7B"]
    assert [rows["T2I-R1", "published"][c] for c in published] == published_by["T2I-R1"]
    assert [rows["EG-GRPO", "published"][c] for c in published[:4]] == ["84.11", "60.88", "77.38", ""]
    notes = "\n".join(table.notes)
    for text in ("stand-in, of ours | really", "20 prompts, the official set has 300", "arXiv 2505.00703", "bootstrap"):
        assert text in notes


def test_several_methods_share_a_row_where_they_can():
    layout = benchmark("t2i_compbench").table
    results = [result("color", 0.8), result("spatial", 0.3, "UniDet"), result("color", 0.6, "other")]
    rows = rows_of(build_table(layout, {"mine": Scores("t2i_compbench", results)}))
    assert rows["mine", "official: BLIP-VQA, UniDet"]["Spatial"].startswith("30.00")
    assert rows["mine", "official: other"]["Color"].startswith("60.00")


def test_the_overall_column_is_the_weighted_sum():
    of = benchmark("wise")
    results = [result(part, 0.5, of.official) for part in of.parts]
    table = build_table(of.table, {"mine": Scores("wise", results, with_overall(results, of.weights))})
    assert rows_of(table)["mine", f"official: {of.official}"]["Overall"].startswith("0.50 [")
    assert rows_of(table)["Janus-Pro-7B", "published"]["Overall"] == "0.35"


def test_three_formats_hold_the_same_cells():
    layout = benchmark("t2i_compbench").table
    table = build_table(layout, {"100% mine_1": Scores("t2i_compbench", [result("color", 0.8, stand_in="a | b")])})
    assert list(csv.reader(io.StringIO(table.csv()))) == [list(table.header), *map(list, table.rows)]
    markdown = table.markdown()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows) and len({line.count(" | ") for line in lines}) == 1
    assert "100% mine_1" in markdown and "- EG-GRPO, published: EG-GRPO (arXiv 2604.02355)" in markdown
    latex = table.latex()
    assert r"100\% mine\_1" in latex and latex.count(r"\\") == 1 + len(table.rows)
    assert latex.count("&") == (1 + len(table.rows)) * (len(table.header) - 1)


def test_runs_that_were_not_drawn_alike_are_told():
    layout = benchmark("t2i_compbench").table
    first = Scores("t2i_compbench", [result("color", 0.8)], manifest=MANIFEST)
    other = Scores("t2i_compbench", [result("color", 0.7)], manifest=replace(MANIFEST, model="b", cfg_weight=1.0))
    alike = Scores("t2i_compbench", [result("color", 0.7)], manifest=replace(MANIFEST, model="b"))
    untold = Scores("t2i_compbench", [result("color", 0.7)])
    notes = build_table(layout, {"A": first, "B": other, "C": alike, "D": untold}).notes
    warnings = [note for note in notes if note.startswith("warning")]
    assert len(warnings) == 2
    assert "A and B were not drawn alike" in warnings[0] and "cfg_weight: 5.0 and 1.0" in warnings[0]
    assert "D: not told how" in warnings[1]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"cot": False}, "cot: True and False"),
        ({"temperature": 0.7}, "temperature: 1.0 and 0.7"),
        ({"template": "u"}, "template: t and u"),
        ({"seed": 1}, "seed: 0 and 1"),
        ({"images_per_prompt": 4}, "images_per_prompt: 10 and 4"),
        ({"prompts": "q"}, "prompts: p and q"),
        ({"drawing": {"top_k": 5}}, "drawing.top_k: None and 5"),
        ({"versions": {}}, "versions.torch: 2.13 and not told"),
    ],
)
def test_every_setting_but_the_model_counts(change, text):
    assert differences(MANIFEST, replace(MANIFEST, **change)) == [text]
    assert differences(MANIFEST, replace(MANIFEST, model="b")) == []
    assert text in warning(MANIFEST, replace(MANIFEST, **change), ("A", "B"))


def test_hashes_tell_weights_and_texts_apart(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        model_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_hash(tmp_path) != first
    assert text_hash("ab", "c") != text_hash("a", "bc")
    assert versions(("torch", "no-such-package")).keys() == {"torch"}


def test_a_manifest_goes_through_the_scores_file(tmp_path):
    scores = Scores("t2i_compbench", [result("color", 0.8)], [], manifest=MANIFEST)
    scores.save(tmp_path)
    assert Scores.load(tmp_path) == scores
    with pytest.raises(ValueError, match="a manifest has the keys"):
        Manifest.from_dict({"model": "a"})


def test_new_results_take_the_place_of_old_ones_of_their_kind():
    old = Scores("x", [result("color", 0.1), result("shape", 0.2)], notes={"a": 1}, manifest=MANIFEST)
    new = Scores("x", [result("color", 0.9), result("color", 0.5, "other")], notes={"b": 2})
    both = old.merged(new)
    assert [(r.category, r.method, round(r.score, 1)) for r in both.results] == [
        ("shape", "BLIP-VQA", 0.2), ("color", "BLIP-VQA", 0.9), ("color", "other", 0.5),
    ]  # fmt: skip
    assert both.notes == {"a": 1, "b": 2} and both.manifest == MANIFEST
