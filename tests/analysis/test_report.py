"""The report: every figure there and whole, one file, safe against what prompts hold, the same bytes again."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from egrpo.algorithm.entropy_policies import entropy_guided
from egrpo.analysis.curve_figures import mean_over, read_curves
from egrpo.analysis.plan_text import MOST_LINES, WIDTH, lay_out
from egrpo.analysis.policy_figures import classify
from egrpo.analysis.report import write_report
from egrpo.analysis.shown import grid_of
from egrpo.analysis.statistics import compute
from egrpo.analysis.study import TokenTable
from egrpo.analysis.tables import Table, letter, number, predictor_names
from tests.analysis import synthetic

HOSTILE = '</td><script>alert("x")</script> $\\frac{1}{ \n\t🟥 ' + "long " * 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a report, of a table with a hostile prompt and hostile plans."""
    folder = tmp_path_factory.mktemp("study")
    table = synthetic.records(prompts=6, plans=2, images=2, settings=("base", "base_cot", "grpo"))
    table["prompt"] = HOSTILE
    table.loc[table["plan"] != "", "plan"] = HOSTILE
    synthetic.draw_images(table, folder)
    run = folder / "run"
    run.mkdir()
    lines = [f"{step},{0.4 + 0.01 * step},{0.5 - 0.01 * step},{0.3}" for step in range(20)]
    (run / "metrics.csv").write_text("\n".join(["step,train/reward,train/entropy_image,train/entropy_text", *lines]))
    study = synthetic.study(
        resamples=100, entropy_policy=entropy_guided, runs={"grpo": run, "base": None}, config=f"prompt: {HOSTILE}"
    )
    write_report(folder, table, study, tokens=synthetic.reader(table))
    return folder


def test_every_figure_is_there_and_whole(folder: Path) -> None:
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {path.stem for path in (folder / "figures").glob("*.pdf")}
    assert names >= {"distributions", "correlations", "stratified", "heat_maps", "plan_entropy", "position", "training"}
    assert len(names) == 14
    assert json.loads((folder / "statistics.json").read_text())["figures_left_out"] == {}
    for name in names:
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape[1] == 660, name  # 3.3 inches at 200 dpi
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all(), f"{name} is clipped"
        assert (pixels < 128).mean() > 0.002, f"{name} is empty"


def test_report_is_one_safe_file(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "<script" not in text and "alert(" in text  # escaped, not dropped
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) >= 14 + 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in text and "@import" not in text
    for told in ("Finding 3", "supported", "python -m egrpo.analyze", "How to repeat it", "3.11"):
        assert told in text


@pytest.mark.slow
def test_same_bytes_again(tmp_path: Path) -> None:
    table = synthetic.records(prompts=3, plans=2, images=2, settings=("base_cot", "grpo"))
    study = synthetic.study(resamples=100)

    def hashes(target: Path) -> dict[str, str]:
        write_report(target, table, study)
        files = [path for path in target.rglob("*") if path.is_file()]
        return {str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, second = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert first == second and "figures/correlations.pdf" in first


@pytest.mark.slow
def test_tables_that_tell_little_still_give_a_report(tmp_path: Path) -> None:
    table = synthetic.records(prompts=3, plans=2, images=1)
    lone = table[(table["prompt_index"] == 0) & (table["setting"] == "base")].assign(file="nowhere.png")
    for name, part in {"lone": lone, "same": table.assign(reward=1.0, image_entropy_mean=0.5)}.items():
        study = synthetic.study(resamples=100, entropy_policy=entropy_guided)
        found = write_report(tmp_path / name, part, study, tokens=synthetic.reader(part))
        assert found["figures_left_out"]
        for reason in found["figures_left_out"].values():
            assert f"left out, because {reason}" in (tmp_path / name / "report.html").read_text()


def test_diversity_takes_embeddings_by_row() -> None:
    table = synthetic.records(prompts=3, plans=2, images=2, settings=("base_cot",))
    same = (np.eye(3)[table["prompt_index"]] @ np.ones((3, 4))) + np.eye(3, 4)[table["prompt_index"]]
    shuffled = np.random.default_rng(0).permutation(len(table))
    found = compute(table.iloc[shuffled], synthetic.study(resamples=100), embeddings=same[shuffled])
    assert found["diversity_source"] == "image embeddings"
    assert found["settings"]["base_cot"]["diversity"]["vendi"]["value"] == pytest.approx(1)  # alike within prompts
    wrong = compute(table, synthetic.study(resamples=100), embeddings=same[shuffled])
    assert wrong["settings"]["base_cot"]["diversity"]["vendi"]["value"] > 1.1
    broken = synthetic.reader(table[table["image_index"] == 0])
    with pytest.raises(ValueError, match="the token file 2"):
        compute(table, synthetic.study(resamples=100), tokens=broken)


def test_tokens_are_classified_by_what_becomes_of_their_advantage() -> None:
    entropy = np.array([[0.9, 0.5, 0.4, 0.1], [0.9, 0.5, 0.4, 0.1]], np.float32)
    text = [np.array([0.8, 0.6, 0.5, 0.1], np.float32), np.array([0.8, 0.6], np.float32)]
    tokens = TokenTable(entropy.astype(int), entropy, entropy, [], [], text)

    def policy(advantages, entropy, mask, is_image):
        plain = advantages[:, None].expand(entropy.shape)
        shaped = plain + (entropy > 0.7) * 0.1 * plain.abs()
        return shaped.where((entropy > 0.2) & mask, shaped.new_zeros(())), {}

    kinds = classify(tokens, np.array([1.0, 0.0]), policy)
    assert [kind.tolist() for kind in kinds[0]] == [[2, 1, 1, 0], [2, 1, 1, 0]]
    assert [kind.tolist() for kind in kinds[1]] == [[2, 1], [2, 1, 1, 0]]
    assert (classify(tokens, np.array([1.0, 1.0]), policy)[0][1] == -1).all()


def test_small_parts(tmp_path: Path) -> None:
    assert [grid_of(n) for n in (36, 576, 12, 7)] == [(6, 6), (24, 24), (3, 4), (1, 7)]
    assert mean_over([np.array([1.0, 3.0]), np.array([3.0]), np.array([])]).tolist() == [2.0, 3.0]
    assert mean_over([]).tolist() == []
    assert [number(-0.001), number(-1.049, 3), number(None)] == ["0.00", "−1.049", "–"]
    assert [letter(i) for i in (0, 25, 26)] == ["a", "z", "aa"]
    rows, left = lay_out(["word "] * 500, [(0.0, 0.0, 0.0, 1.0)] * 500)
    assert len(rows) == MOST_LINES and left == 500 - MOST_LINES * (WIDTH // 5)
    table = Table("", "", [])
    missing = {"value": None, "low": None, "high": None, "reason": "why"}
    assert [table.cell(missing), table.cell(missing), table.notes] == ["– (a)", "– (a)", ["why"]]
    assert read_curves(tmp_path) == {}


def test_both_image_entropies_are_shown_where_they_differ() -> None:
    table: pd.DataFrame = synthetic.records(prompts=3, settings=("base_cot",))
    study = synthetic.study(resamples=100)
    assert len(predictor_names(compute(table, study), study)) == 4
    guided = table.assign(guided_entropy_mean=table["guided_entropy_mean"] * 0.5)
    names = predictor_names(compute(guided, study), study)
    assert list(names)[:3] == ["guided_entropy_mean", "guided_entropy_std", "image_entropy_mean"]
