"""What official evaluators leave, in their formats, becomes scores; what is not whole is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from egrpo.benchmarks import Scores
from tests.benchmarks.pieces import COMPLEX, GENEVAL, benchmark, geneval_prompts, t2i_prompts, wise_prompts

FILES = {
    "color": "annotation_blip/vqa_result.json",
    "shape": "annotation_blip/vqa_result.json",
    "spatial": "labels/annotation_obj_detection_2d/vqa_result.json",
    "3d_spatial": "labels/annotation_obj_detection_3d/vqa_result.json",
    "numeracy": "annotation_num/vqa_result.json",
    "non_spatial": "annotation_clip/vqa_result.json",
    "complex": "annotation_3_in_1/vqa_result.json",
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def answers(count: int, seed: int = 0) -> list[dict]:
    """As `vqa_result.json`: BLIP-VQA writes text of four places."""
    values = np.random.default_rng(seed).random(count)
    return [{"question_id": i, "answer": f"{value:.4f}"} for i, value in enumerate(values)]


@pytest.mark.parametrize("category", FILES)
def test_t2i_compbench(category, tmp_path):
    prompts = t2i_prompts(tmp_path / "prompts", **{category: ["a cat", "a dog", "a cow"]})
    of = benchmark("t2i_compbench", f"benchmark.prompts={prompts}")
    rows = answers(30)
    write(tmp_path / "out" / category / FILES[category], json.dumps(rows[::-1]))  # UniDet's order is its loader's
    (result,) = of.read_back(tmp_path / "out").results
    values = np.array([float(row["answer"]) for row in rows])
    assert result.score == pytest.approx(values.mean(), abs=1e-12)  # the official average over images
    assert list(result.values.values()) == pytest.approx(values.reshape(3, 10).mean(1))
    assert result.images == 30 and result.stand_in == "" and result.expected_prompts == 300


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda rows: rows[:-1], "scores 29 of 30 images, the first without is 29"),
        (lambda rows: [*rows, {"question_id": 30, "answer": "0.5"}], "the first 30"),
        (lambda rows: [*rows[:-1], rows[0]], "image 0 is scored twice"),
        (lambda rows: [{**rows[0], "answer": "1.5"}, *rows[1:]], "image 0 has the score 1.5, outside 0..1"),
        (lambda rows: [{**rows[0], "answer": "nan"}, *rows[1:]], "with a number as answer"),
        (lambda rows: {"rows": rows}, "is no list of objects"),
    ],
)
def test_results_that_do_not_fit(spoil, text, tmp_path):
    prompts = t2i_prompts(tmp_path / "prompts", color=["a cat", "a dog", "a cow"])
    of = benchmark("t2i_compbench", f"benchmark.prompts={prompts}")
    path = write(tmp_path / "out" / "color" / FILES["color"], json.dumps(spoil(answers(30))))
    with pytest.raises(ValueError, match="run the official evaluator again") as caught:
        of.read_back(tmp_path / "out")
    assert text in str(caught.value) and str(path) in str(caught.value)


def test_half_a_file_and_no_file(tmp_path):
    prompts = t2i_prompts(tmp_path / "prompts", color=["a cat"])
    of = benchmark("t2i_compbench", f"benchmark.prompts={prompts}")
    with pytest.raises(ValueError, match=r"no official results.*color/annotation_blip/vqa_result\.json"):
        of.read_back(tmp_path / "out")
    write(tmp_path / "out" / "color" / FILES["color"], json.dumps(answers(10))[:-20])
    with pytest.raises(ValueError, match="perhaps it is half-written"):
        of.read_back(tmp_path / "out")


def geneval_lines(right: list[bool]) -> str:
    """As `results.jsonl`, in the order of a folder listing."""
    lines = []
    for number, correct in enumerate(right):
        row = GENEVAL[number // 4]
        lines.append(
            {
                "filename": f"/data/out/{number // 4:05d}/samples/{number % 4:04d}.png",
                "tag": row["tag"],
                "prompt": row["prompt"],
                "correct": correct,
                "reason": "",
                "metadata": json.dumps(row),
                "details": "{}",
            }
        )
    return "".join(json.dumps(line) + "\n" for line in reversed(lines))


def test_geneval(tmp_path):
    overrides = [f"benchmark.prompts={geneval_prompts(tmp_path / 'p.jsonl')}"]
    of = benchmark("geneval", *overrides)
    write(tmp_path / "out" / "results.jsonl", geneval_lines([True, True, False, True, False, False, True, False]))
    scores = of.read_back(tmp_path / "out")
    assert {r.category: r.score for r in scores.results} == {"single_object": 0.75, "counting": 0.25}
    assert not scores.overall  # four of six tasks are not there
    of.expected = {"single_object": 80, "counting": 80}
    of.weights = dict.fromkeys(of.expected, 0.5)
    assert of.read_back(tmp_path / "out").overall[0].score == 0.5

    path = tmp_path / "out" / "results.jsonl"
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"scores 7 of 8 images, the first without is 00000/samples/0000\.png"):
        of.read_back(tmp_path / "out")
    path.write_text(whole[:-30])
    with pytest.raises(ValueError, match="line 8 is no JSON"):
        of.read_back(tmp_path / "out")
    path.unlink()
    with pytest.raises(ValueError, match=r"has no results\.jsonl: run the official evaluator with --outfile"):
        of.read_back(tmp_path / "out")


NUMBERS = [1, 2, 401, 568, 701, 801, 901]


def wise_line(number: int, consistency: float = 2, realism: float = 1, aesthetic_quality: float = 0) -> dict:
    scores = {"consistency": consistency, "realism": realism, "aesthetic_quality": aesthetic_quality}
    return {"prompt_id": number, "Subcategory": "any", **scores}


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_wise_legacy(tmp_path):
    of = benchmark("wise", f"benchmark.prompts={wise_prompts(tmp_path / 'p', *NUMBERS)}")
    out = tmp_path / "out" / "Results"
    # The names of the official README: one of them holds no "scores".
    write(out / "cultural_common_sense_scores_results.jsonl", lines([wise_line(1), wise_line(2, 0, 0, 0)]))
    write(out / "spatio-temporal_reasoning_results.jsonl", lines([wise_line(401, 1, 1, 1), wise_line(568, 2, 2, 2)]))
    science = [wise_line(701, 0, 2, 0), wise_line(801, 0, 0, 2), wise_line(901, 1, 0, 0)]
    write(out / "natural_science_scores_results.jsonl", lines(science))
    scores = of.read_back(tmp_path / "out")
    parts = {r.category: r.score for r in scores.results}
    expected = {"cultural": 0.4, "time": 0.5, "space": 1.0, "biology": 0.2, "physics": 0.1, "chemistry": 0.35}
    assert parts == pytest.approx(expected)
    whole = 0.4 * 0.4 + 0.167 * 0.5 + 0.133 * 1.0 + 0.1 * (0.2 + 0.1 + 0.35)
    assert scores.overall[0].score == pytest.approx(whole)
    assert scores.overall[0].method == "gpt-4o-2024-05-13" and scores.overall[0].stand_in == ""


def test_wise_verified(tmp_path):
    numbers = [1, 401, 521, 641, 761, 881]
    of = benchmark("wise_verified", f"benchmark.prompts={wise_prompts(tmp_path / 'p', *numbers)}")
    rows = [{"prompt_id": n, "Subcategory": "any", "score": s} for n, s in zip(numbers, [1, 0, 1, 1, 0, 1])]
    write(tmp_path / "out" / "Results-qwen35" / "all_scores_results.jsonl", lines(rows))
    assert of.read_back(tmp_path / "out").overall[0].score == pytest.approx(0.4 + 3 * 0.12)


@pytest.mark.parametrize(
    "row, text",
    [
        (wise_line(2, 999, 999, 999), "the official judge failed on prompt_id 2"),
        (wise_line(2, 3), "consistency is 3.0, outside 0..2"),
        (wise_line(2, 1.5), "no whole number"),
        ({"prompt_id": 2, "score": 1}, "consistency is missing"),
        (wise_line(1, 0), "prompt_id 1 has another score"),
        (wise_line(3), "scores 1 of 2 prompt_ids, the first without is 2"),
        ({"consistency": 1}, "no whole prompt_id"),
    ],
)
def test_wise_results_that_do_not_fit(row, text, tmp_path):
    of = benchmark("wise", f"benchmark.prompts={wise_prompts(tmp_path / 'p', 1, 2)}")
    write(tmp_path / "out" / "a_scores.jsonl", lines([wise_line(1), row]))
    with pytest.raises(ValueError, match=r"a_scores\.jsonl|out") as caught:
        of.read_back(tmp_path / "out")
    assert text in str(caught.value)


def test_scores_are_kept_whole(tmp_path):
    prompts = t2i_prompts(tmp_path / "prompts", complex=COMPLEX)
    of = benchmark("t2i_compbench", f"benchmark.prompts={prompts}")
    write(tmp_path / "out" / "complex" / FILES["complex"], json.dumps(answers(30)))
    scores = of.read_back(tmp_path / "out")
    scores.save(tmp_path / "out")
    assert Scores.load(tmp_path / "out") == scores
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    low, high = content["results"][0]["interval_95"]
    assert low < content["results"][0]["score"] < high and content["results"][0]["prompts"] == 3
    (tmp_path / "out" / "scores.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a scores file"):
        Scores.load(tmp_path / "out")
    with pytest.raises(ValueError, match=r"has no scores\.json"):
        Scores.load(tmp_path)
