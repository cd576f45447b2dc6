"""A study that was stopped, wherever, goes on and leaves the files of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from egrpo import analyze as command
from egrpo.analysis import drawing, shards
from tests.analysis.studies import TINY, config, contents, draw

GUIDED = "rollout.cfg_weight=1.5"  # as the fixture has it


class Stop(RuntimeError):
    """What a kill is to a test in one process."""


@pytest.mark.parametrize("place", ["image", "tokens", "part"])
@pytest.mark.parametrize("call", [1, 5])
def test_stopped_and_started_again_it_gives_the_same_files(
    study: Path, tmp_path: Path, monkeypatch: Any, place: str, call: int
):
    calls = 0
    names = {"image": "distribution", "tokens": "write_tokens", "part": "write_part"}  # what is called at that place
    real = getattr(drawing, names[place])

    def stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, names[place], stop)
        with pytest.raises(Stop):
            draw(tmp_path, patch, GUIDED)
    assert not (tmp_path / "records.parquet").exists()
    torn = tmp_path / "images" / "base" / "torn.png.123.partial"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes(b"half an image")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.parquet")}
    draw(tmp_path, monkeypatch, GUIDED)
    assert contents(tmp_path) == contents(study)
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())  # nothing is drawn again
    assert len(finished) == (call - 1 if place != "image" else call // 6)


def test_of_a_finished_study_only_the_report_is_made_again(study: Path, monkeypatch: Any):
    before = contents(study)
    monkeypatch.setattr(shards, "load_policy", None)
    reports: list[Any] = []
    monkeypatch.setattr(command, "write_report", lambda *args, **kwargs: reports.append(args))
    command.analyze(config(study, GUIDED, "report.stratum_quantile=0.5", "processes=2", "rollout.batch_size=1"))
    assert contents(study) == before
    folder, records, description = reports[0]
    assert folder == study and len(records) == 18 and description.stratum_quantile == 0.5


@pytest.mark.parametrize(
    "changed, told",
    [
        ("seed=1", "seed=1, was 0"),
        ("rollout.temperature=0.7", "rollout.temperature=0.7, was 1.0"),
        ("images_per_plan=1", "images_per_plan=1, was 2"),
        ("reward.shapes_oracle.weight=2", "reward.shapes_oracle.weight=2, was 0.5"),
        ("settings.base.cot=true", "settings.base.cot=True, was False"),
        ("num_prompts=2", "num_prompts=2, was 3"),
    ],
)
def test_a_study_goes_on_with_nothing_else(study: Path, monkeypatch: Any, changed: str, told: str):
    before = contents(study), (study / "config.yaml").read_text()
    with pytest.raises(ValueError, match="began with other settings") as caught:
        draw(study, monkeypatch, GUIDED, changed)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert (contents(study), (study / "config.yaml").read_text()) == before


def test_other_weights_are_refused(study: Path, tmp_path: Path, monkeypatch: Any):
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "write_part", lambda *args: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            draw(tmp_path, patch, GUIDED)
    monkeypatch.setattr(shards, "model_hash", lambda policy: "0" * 64)
    with pytest.raises(ValueError, match=r"settings\.base: the weights are not those"):
        draw(tmp_path, monkeypatch, GUIDED)


@pytest.mark.slow
def test_killed_with_its_processes_it_goes_on(study: Path, tmp_path: Path, monkeypatch: Any):
    words = [sys.executable, "-m", "egrpo.analyze", *TINY, GUIDED, "processes=2", f"hydra.run.dir={tmp_path}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "parts").rglob("*.parquet")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.parquet")}
    assert 0 < len(finished) < 6
    time.sleep(10)  # its processes end with the unit that they draw
    there = len(list((tmp_path / "parts").rglob("*.parquet")))
    time.sleep(3)
    assert there == len(list((tmp_path / "parts").rglob("*.parquet"))) < 6
    draw(tmp_path, monkeypatch, GUIDED)
    assert contents(tmp_path) == contents(study)
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
