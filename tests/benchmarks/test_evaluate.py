"""`python -m egrpo.evaluate`: exports that go on, folders that are refused, what is scored and what is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from egrpo.benchmarks import FolderBenchmark, Scores, T2ICompBench
from egrpo.benchmarks.export import FILE
from egrpo.generation import Generator
from tests.benchmarks.evaluating import exported, overrides_for, run
from tests.benchmarks.pieces import COLORS, GENEVAL, SPATIAL, benchmark
from tests.conftest import REPO


class Stop(BaseException):
    """As a kill: nothing in the way catches it."""


def read_t2i(folder: Path) -> None:
    for category, prompts in (("color", COLORS), ("spatial", SPATIAL)):
        names = [path.name for path in (folder / category / "samples").iterdir()]
        names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))  # as BLIP_vqa.py sorts
        assert [int(name.split("_")[1].split(".")[0]) for name in names] == list(range(3 * len(prompts)))
        told = [name.split("_")[0] for name in names]
        assert told == [p.replace("/", " ").replace("_", " ") for p in prompts for _ in range(3)]


def read_geneval(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
    assert names == ["00000", "00001"]
    for name, row in zip(names, GENEVAL):
        assert json.loads((folder / name / "metadata.jsonl").read_text()) == row
        images = sorted(p.name for p in (folder / name / "samples").iterdir() if re.match(r"\d+\.png", p.name))
        assert images == ["0000.png", "0001.png", "0002.png", "0003.png"]
        with Image.open(folder / name / "grid.png") as grid:
            assert grid.size == (96, 96)


def read_wise(folder: Path) -> None:
    assert sorted(int(path.stem) for path in folder.glob("*.png")) == [1, 3, 450, 801]


def read_shapes(folder: Path) -> None:
    assert len(list((folder / "images").glob("*.png"))) == 6


READING = {"t2i_compbench": read_t2i, "geneval": read_geneval, "wise": read_wise, "shapes": read_shapes}
OWNERS = {"t2i_compbench": T2ICompBench, "geneval": FolderBenchmark, "wise": FolderBenchmark, "shapes": FolderBenchmark}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """An evaluation of the shipped model on six prompts of the shapes world."""
    return run(tmp_path_factory.mktemp("shapes") / "own", *overrides_for("shapes", Path()))


@pytest.mark.parametrize("name", list(READING))
def test_an_interrupted_export_goes_on_and_ends_identical(name, tmp_path, monkeypatch):
    settings = [*overrides_for(name, tmp_path), "score=false"]
    whole = run(tmp_path / "whole", *settings)
    READING[name](whole)
    images = {name: data for name, data in exported(whole).items() if name.endswith(".png")}
    assert len({data for name, data in images.items()}) > len(images) // 2  # drawn, not repeated
    owner = OWNERS[name]
    writes, write = [], owner.write_image

    def stopping(self, folder, item, number, image):
        if len(writes) == 3:
            raise Stop
        writes.append(folder / item.files[number])
        write(self, folder, item, number, image)

    monkeypatch.setattr(owner, "write_image", stopping)
    with pytest.raises(Stop):
        run(tmp_path / "parts", *settings)
    monkeypatch.undo()
    assert 0 < len(exported(tmp_path / "parts")) < len(exported(whole))
    writes[1].write_bytes(writes[1].read_bytes()[:-20])  # killed while it was written by other means
    run(tmp_path / "parts", *settings)
    assert exported(tmp_path / "parts") == exported(whole)


def test_every_image_is_the_one_of_its_prompt_and_number(tmp_path):
    words = ["benchmark=shapes", "benchmark.limit=3", "benchmark.images_per_prompt=2", "score=false"]
    folder = run(tmp_path, *words)
    generator = Generator("shapes", overrides=["model.max_plan_tokens=6"])
    for item in benchmark("shapes", *words[1:3]).items():
        for file, drawn in zip(item.files, generator.generate(item.prompt, num_images=2), strict=True):
            with Image.open(folder / file) as image:
                assert image.tobytes() == drawn.image.tobytes()


def test_parts_share_a_folder_and_the_last_one_scores(shapes, tmp_path, capsys):
    for shard in ("2/2", "1/2"):
        run(tmp_path, *overrides_for("shapes", tmp_path), f"shard={shard}")
        assert (tmp_path / "scores.json").is_file() == (shard == "1/2")
    assert "left to other parts" in capsys.readouterr().out
    assert exported(tmp_path) == exported(shapes)
    assert (tmp_path / "table.csv").read_text() == (shapes / "table.csv").read_text()


def test_what_an_evaluation_leaves(shapes, capsys):
    run(shapes, *overrides_for("shapes", shapes))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(shapes) and "0 images drawn, 6 were there" in lines
    table = (shapes / "table.md").read_text()
    assert table.rstrip() in "\n".join(lines) and "[low, high]: 95 % interval" in table
    assert "6 prompts, the official set has 640" in table
    scores = Scores.load(shapes)
    manifest = json.loads((shapes / FILE).read_text())["manifest"]
    assert scores.manifest.model == manifest["model"] and len(manifest["model"]) == 64
    assert (scores.manifest.cot, scores.manifest.seed, scores.manifest.images_per_prompt) == (True, 0, 1)
    assert {"config.yaml", "table.tex", "table.csv"} <= {path.name for path in shapes.iterdir()}
    assert (shapes / "table.csv").read_text().splitlines()[1].startswith("shapes,")


@pytest.mark.parametrize(
    "setting, told",
    [
        ("cot=off", "cot: True and False"),
        ("seed=1", "seed: 0 and 1"),
        ("rollout.temperature=0.5", "temperature: 1.0 and 0.5"),
        ("benchmark.limit=5", "prompts: "),
        ("benchmark.images_per_prompt=2", "images_per_prompt: 1 and 2"),
        ("model.max_plan_tokens=7", "max_plan_tokens: 6 and 7"),
    ],
)
def test_a_folder_of_other_settings_is_refused(shapes, setting, told):
    before = exported(shapes, leave_out=())
    with pytest.raises(ValueError, match=f"drawn otherwise .*{told}.*hydra.run.dir"):
        run(shapes, *overrides_for("shapes", shapes), setting)
    assert exported(shapes, leave_out=()) == before


def test_images_of_which_nothing_is_known_are_scored_but_not_added_to(shapes, tmp_path):
    folder = tmp_path / "theirs"
    for path in (shapes / "images").iterdir():
        target = folder / "images" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"no egrpo/manifest\.json .*export=false"):
        run(folder, *overrides_for("shapes", tmp_path))
    run(folder, *overrides_for("shapes", tmp_path), "export=false")
    own, theirs = Scores.load(shapes), Scores.load(folder)
    assert theirs.manifest is None and [r.values for r in theirs.results] == [r.values for r in own.results]
    assert (folder / "table.csv").read_text().splitlines()[1].startswith("theirs,")


def test_rows_of_other_folders_stand_beside_with_a_warning(shapes, tmp_path, capsys):
    settings = overrides_for("shapes", tmp_path)
    run(tmp_path / "same", *settings, f"compare=[{shapes}]")
    same = (tmp_path / "same" / "table.md").read_text()
    assert "| shapes (compared) | official" in same and "warning" not in same
    run(tmp_path / "other", *settings, "cot=off", "label=without a plan", f"compare=[{shapes}]")
    table = (tmp_path / "other" / "table.md").read_text()
    assert "| without a plan | official" in table
    assert "- warning: without a plan and shapes were not drawn alike" in table and "cot: False and True" in table
    assert table.rstrip() in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds scores of shapes, not of wise"):
        run(tmp_path / "wise", *overrides_for("wise", tmp_path), f"compare=[{shapes}]")
    with pytest.raises(ValueError, match=r"has no scores\.json"):
        run(tmp_path / "none", *settings, f"compare=[{tmp_path}]")


def test_what_fails_loses_nothing_else(tmp_path):
    settings = overrides_for("t2i_compbench", tmp_path)
    folder = run(tmp_path / "out", *settings, "score=false")
    before = exported(folder)
    with pytest.raises(ValueError, match="holds no official results"):
        run(folder, *settings, "score=false", "export=false")
    rows = [{"question_id": i, "answer": str(i / 10)} for i in range(9)]
    result = folder / "color" / "annotation_blip" / "vqa_result.json"
    result.parent.mkdir()
    result.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="cannot be scored") as caught:
        run(folder, *settings)
    told = str(caught.value)
    assert "spatial of t2i_compbench cannot be scored" in told and "color of t2i_compbench cannot be scored" in told
    assert "nowhere" in told and f"is kept in {folder}" in told
    (only,) = Scores.load(folder).results
    assert (only.category, only.method, only.stand_in) == ("color", "BLIP-VQA", "")
    assert only.score == pytest.approx(0.4)
    assert "| shapes | official: BLIP-VQA | 40.00 [" in (folder / "table.md").read_text()
    assert exported(folder) == {**before, "color/annotation_blip/vqa_result.json": result.read_bytes()}
    result.write_text(json.dumps(rows)[:-9])
    with pytest.raises(ValueError, match="half-written"):
        run(folder, *settings, "score=false", "export=false")
    assert len(Scores.load(folder).results) == 1  # what was read before
    result.unlink()
    other = folder / "spatial" / "labels" / "annotation_obj_detection_2d" / "vqa_result.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(rows[:6]))
    run(folder, *settings, "score=false", "export=false")
    assert {r.category: round(r.score, 6) for r in Scores.load(folder).results} == {"color": 0.4, "spatial": 0.25}


def test_prompts_that_are_not_there_are_told_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"benchmark\.prompts=PATH"):
        run(tmp_path / "out", "benchmark=wise", "model.path=nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(tmp_path):
    words = ["benchmark.limit=4", "model.max_plan_tokens=6", f"hydra.run.dir={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "egrpo.evaluate", *words], cwd=REPO, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    words = [*words, "seed=1"]
    again = subprocess.run(
        [sys.executable, "-m", "egrpo.evaluate", *words], cwd=REPO, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 1 and again.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'out'} holds images")


def test_no_model_is_loaded_where_nothing_is_left_to_draw(shapes, tmp_path, monkeypatch, capsys):
    settings = overrides_for("shapes", shapes)
    monkeypatch.setattr("egrpo.policies.built", lambda model: pytest.fail("a model is loaded"))
    run(shapes, *settings)
    assert "0 images drawn, 6 were there" in capsys.readouterr().out
    for changed in ("seed=1", "rollout.temperature=0.5", "model.max_plan_tokens=7"):
        with pytest.raises(pytest.fail.Exception, match="a model is loaded"):  # it decides whether the images are these
            run(shapes, *settings, changed)
