"""A folder of images: what a stop leaves is gone on with, and the files are those of a run without one."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from egrpo.generation import run as running
from egrpo.generation import store as storing
from egrpo.generation.png import write_whole
from egrpo.generation.requests import Request
from egrpo.generation.store import Store
from tests.generation.conftest import PROMPTS, files_of

SETTINGS = ("num_images=3", "batch_size=4")


class Stop(BaseException):
    """As a kill: nothing in the way catches it."""


def rows_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["generations.jsonl"].splitlines()]


def test_what_a_run_leaves(whole):
    rows = rows_of(whole)
    assert [(row["prompt"], row["index"]) for row in rows] == [(p, i) for p in PROMPTS for i in range(3)]
    assert {"generations.jsonl", "manifest.json", *(row["file"] for row in rows)} < set(whole)
    assert len(whole) == 2 + len(rows) + len(PROMPTS)  # a sheet a prompt, and nothing else
    assert all(row["plan"] and row["seed"] == 0 for row in rows)
    assert len({whole[row["file"]] for row in rows}) == len(rows)


def test_a_picture_tells_what_it_is(whole):
    for row in rows_of(whole):
        image = Image.open(io.BytesIO(whole[row["file"]]))
        assert image.size == (48, 48)
        told = {name: image.info[name] for name in ("prompt", "plan", "seed", "index")}
        assert told == {"prompt": row["prompt"], "plan": row["plan"], "seed": "0", "index": str(row["index"])}
        settings = json.loads(whole["manifest.json"])["settings"]
        assert settings["model_hash"] in image.info["model"] and "torch" in image.info["versions"]


@pytest.mark.parametrize("size", [1, 7])
def test_files_do_not_depend_on_what_is_drawn_at_once(command, whole, tmp_path, size: int):
    assert command(tmp_path, PROMPTS, "num_images=3", f"batch_size={size}") == whole


def test_processes_that_share_a_folder_leave_the_same_files(command, whole, tmp_path):
    half = command(tmp_path, PROMPTS, *SETTINGS, "shard=2/2")
    assert 0 < len(rows_of(half)) < len(rows_of(whole))
    assert command(tmp_path, PROMPTS, *SETTINGS, "shard=1/2") == whole


def test_an_image_does_not_depend_on_other_prompts(command, whole, tmp_path):
    found = command(tmp_path, [PROMPTS[3], "something else", PROMPTS[0]], "num_images=2")
    same = {row["file"]: whole.get(row["file"]) for row in rows_of(found) if row["prompt"] != "something else"}
    assert len(same) == 4 and all(found[name] == content for name, content in same.items())
    assert command(tmp_path, PROMPTS, "num_images=3")["generations.jsonl"].startswith(whole["generations.jsonl"])
    more = files_of(tmp_path)
    assert all(more[name] == content for name, content in whole.items() if name != "generations.jsonl")


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_stopped_anywhere_goes_on(command, whole, tmp_path, monkeypatch, seed: int):
    """Every write may be the last, or be cut in its middle."""
    rng, write, add = random.Random(seed), storing.write_whole, Store.add

    def cut(path: Path, content: bytes) -> None:
        if rng.random() < 0.1:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.1.part").write_bytes(content[: len(content) // 2])
            raise Stop
        write(path, content)
        if rng.random() < 0.1:
            raise Stop

    def tear(store: Store, *args: Any) -> Any:
        try:
            return add(store, *args)
        except Stop:
            rows = store.folder / "generations.jsonl"
            if rows.is_file() and rng.random() < 0.5:
                rows.write_bytes(rows.read_bytes()[: -rng.randint(1, 40)])
            raise

    monkeypatch.setattr(storing, "write_whole", cut)
    monkeypatch.setattr(Store, "add", tear)
    stops = 0
    while stops < 100:
        try:
            found = command(tmp_path, PROMPTS, *SETTINGS)
            break
        except Stop:
            stops += 1
    assert stops and found == whole


def test_nothing_is_drawn_twice(command, whole, tmp_path, monkeypatch):
    command(tmp_path, PROMPTS, *SETTINGS)
    monkeypatch.setattr(running, "draw", None)  # whoever calls it fails
    assert command(tmp_path, PROMPTS, *SETTINGS) == whole


def test_what_is_spoilt_is_drawn_again(command, whole, tmp_path):
    command(tmp_path, PROMPTS, *SETTINGS)
    rows = rows_of(whole)
    half = tmp_path / rows[2]["file"]
    half.write_bytes(half.read_bytes()[:-30])
    (tmp_path / rows[5]["file"]).unlink()
    lines = (tmp_path / "generations.jsonl").read_bytes().splitlines(keepends=True)
    lines[8] = b'{"prompt": 3}\n'
    (tmp_path / "generations.jsonl").write_bytes(b"".join(lines))
    assert command(tmp_path, PROMPTS, *SETTINGS) == whole


def test_a_batch_is_drawn_as_it_was_though_one_image_is_missing(command, whole, tmp_path, monkeypatch):
    command(tmp_path, PROMPTS, *SETTINGS)
    (tmp_path / rows_of(whole)[5]["file"]).unlink()
    drawn: list[Any] = []
    draw = running.draw
    monkeypatch.setattr(running, "draw", lambda policy, part, *how: drawn.append(part) or draw(policy, part, *how))
    assert command(tmp_path, PROMPTS, *SETTINGS) == whole
    assert [[request.file for request in part] for part in drawn] == [[row["file"] for row in rows_of(whole)[4:8]]]


def test_more_images_are_added_and_the_sheet_shows_them(command, whole, tmp_path):
    command(tmp_path, PROMPTS, "num_images=2")
    assert command(tmp_path, PROMPTS, *SETTINGS) == whole


@pytest.mark.parametrize(
    "setting, told",
    [
        ("seed=1", r"seed=1 \(was 0\)"),
        ("cot=off", r"cot=false \(was true\)"),
        ("rollout.cfg_weight=2", r"cfg_weight=2.0 \(was 1.0\)"),
        ("rollout.top_k=5", r"top_k=5 \(was null\)"),
        ("model/templates=world_knowledge", "templates="),
        ("model.max_plan_tokens=7", "max_plan_tokens=7"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(command, tmp_path, setting: str, told: str):
    (tmp_path / "images").mkdir()
    before = command(tmp_path, PROMPTS[:1], "num_images=1")
    with pytest.raises(ValueError, match=told):
        command(tmp_path, PROMPTS[:1], "num_images=1", setting)
    assert files_of(tmp_path) == before


def test_a_manifest_that_cannot_be_read_is_told(command, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        command(tmp_path, PROMPTS[:1])


def test_equal_prompts_in_a_file_give_images_that_differ(command, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red circle\na red circle\n")
    rows = rows_of(command(tmp_path / "out", str(tmp_path / "p.txt"), "num_images=2", "sheets=false"))
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert len({(tmp_path / "out" / row["file"]).read_bytes() for row in rows}) == 4
    said = capsys.readouterr().out.splitlines()
    assert "1 of 2 prompts stand there more than once" in said[0] and said[-1] == str(tmp_path / "out")


def test_a_name_belongs_to_its_prompt(whole):
    assert all(row["file"] == Request(row["prompt"], row["index"]).file for row in rows_of(whole))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_whole(path, b"before")

    def cut(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:2])
        raise Stop

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(Stop):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with(whole, tmp_path):
    """SIGKILL in the middle, twice, then to the end; with the command itself."""
    given = f"prompts={json.dumps(PROMPTS, ensure_ascii=False)}"
    words = [sys.executable, "-m", "egrpo.generate", given, f"hydra.run.dir={tmp_path}", "model.max_plan_tokens=6"]
    words += [*SETTINGS, "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    for images in (2, 7):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while len(list(tmp_path.glob("images/*.png"))) < images and process.poll() is None:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
    assert 0 < len(list(tmp_path.glob("images/*.png"))) < len(PROMPTS) * 3
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(tmp_path)
    assert files_of(tmp_path) == whole


def test_no_model_is_loaded_where_nothing_is_left_to_draw(command, tmp_path, monkeypatch, capsys):
    files = command(tmp_path, PROMPTS[:2], "num_images=1")
    monkeypatch.setattr("egrpo.policies.built", lambda model: pytest.fail("a model is loaded"))
    assert command(tmp_path, PROMPTS[:2], "num_images=1") == files
    assert "0 images drawn" in capsys.readouterr().out
    for changed in ("num_images=2", "num_images=1 seed=1"):
        with pytest.raises(pytest.fail.Exception, match="a model is loaded"):
            command(tmp_path, PROMPTS[:2], *changed.split())
