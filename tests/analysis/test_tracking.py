"""What trackers get of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.utils import instantiate
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from egrpo.analysis.records import read_records
from egrpo.analysis.tracking import flat_numbers, log_study, sample_rows
from tests.analysis.studies import config

STATISTICS = {"a": {"value": 0.5, "interval": [0.25, None], "why": "x"}, "n": 3, "yes": True, "bad": float("nan")}


def test_numbers_literal():
    assert flat_numbers(STATISTICS) == {"a/value": 0.5, "a/interval/0": 0.25, "n": 3.0}


def test_samples_are_spread_over_the_table():
    table = pd.DataFrame({"x": range(100)})
    assert sample_rows(table, 3).x.tolist() == [0, 49, 99]
    assert len(sample_rows(table.iloc[:2], 3)) == 2


@pytest.fixture
def folder(study: Path, tmp_path: Path) -> Path:
    """The study's images and one figure."""
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "figures" / "one.png")
    (tmp_path / "report.html").write_text("<p>report</p>")
    (tmp_path / "images").symlink_to(study / "images")
    return tmp_path


def test_wandb_gets_tables_figures_and_the_report(study: Path, folder: Path, monkeypatch: Any):
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = instantiate(config(folder, "logger=wandb").logger)
    log_study(list(loggers.values()), folder, read_records(study), STATISTICS)
    media = [p.name.rsplit("_", 2)[0] for p in (folder / "wandb").glob("offline-run-*/files/media/**/*") if p.is_file()]
    assert {"one", "report", "records", "samples"} <= set(media)
    table = json.loads(next((folder / "wandb").glob("offline-run-*/files/media/table/study/samples*")).read_text())
    assert table["columns"][:2] == ["image", "setting"] and len(table["data"]) == 18


def test_tensorboard_gets_figures_and_numbers(study: Path, folder: Path):
    loggers = instantiate(config(folder, "logger=tensorboard").logger)
    log_study(list(loggers.values()), folder, read_records(study), STATISTICS)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["study/one"]
    assert events.Scalars("study/a/value")[0].value == 0.5
