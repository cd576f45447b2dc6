"""What a whole run leaves in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.training.pieces import metrics


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps with everything that the default configuration does, trackers aside."""
    folder = tmp_path_factory.mktemp("run")
    runs.run(
        folder,
        "trainer.max_steps=5",
        "trainer.val_check_interval=2",
        "callbacks.checkpoint.every_n_train_steps=2",
        "callbacks.checkpoint.save_top_k=2",
        "callbacks.samples.every_n_train_steps=2",
        "baseline_temperatures=[0.7]",
        "+also_validate.without_plan={cot: false}",
        "seed=3",
    )
    return folder


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_configuration_is_resolved(folder):
    text = (folder / "config.yaml").read_text()
    cfg = OmegaConf.load(folder / "config.yaml")
    assert "${" not in text
    assert cfg.seed == cfg.data.seed == cfg.module.seed == 3 and cfg.run_dir == str(folder)


def test_metrics_of_every_step_and_validation(folder):
    rows = metrics(folder)
    assert [row["step"] for row in rows if "train/loss" in row] == ["1", "2", "3", "4", "5"]
    assert [row["step"] for row in rows if "val/reward" in row] == ["0", "2", "4", "5"]
    assert [row["step"] for row in rows if "val/temperature_0.7/reward" in row] == ["0"]
    needed = {"loss", "reward", "reward/brightness", "reward_std", "kl", "clip_fraction", "grad_norm", "lr"}
    needed |= {"entropy_text", "entropy_image", "share_bonus", "share_excluded", "plan_tokens", "plans_distinct"}
    assert {f"train/{name}" for name in needed} <= set(rows[2])
    assert {"val/reward", "val/oracle", "val/strict", "val/oracle/seen", "val/oracle/unseen_prompt"} <= set(rows[1])
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"perf/tokens_per_second", "perf/seconds_rollout", "perf/memory_gb"} <= set(header)


def test_as_many_checkpoints_are_kept_as_asked_for(folder):
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    best = {name for name in names if name.startswith("best_")}
    assert names - best == {"step_000004.ckpt", "step_000005.ckpt", "last.ckpt"}
    assert len(best) == 1


@pytest.mark.parametrize("name", ["before", "after", "before_after", "step_000002", "step_000004"])
def test_sheets_of_samples(folder, name: str):
    with Image.open(folder / "samples" / f"{name}.png") as image:
        assert 200 < image.width < 4000 and 100 < image.height < 4000
        low, high = image.convert("L").getextrema()
        assert low < 100 and high == 255  # captions on white


def test_curves(folder):
    with Image.open(folder / "curves.png") as image:
        assert image.width > 1000 and image.height > 500


def test_the_summary(folder, summary):
    assert set(summary["validation"]) == {"temperature_0.7", "before", "after", "gain", "without_plan"}
    for name in ("before", "after", "temperature_0.7", "without_plan"):
        part = summary["validation"][name]
        assert 0 <= part["oracle"] <= 1 and part["strict"] <= part["oracle"]
        assert set(part["by_split"]) == {"unseen_prompt", "unseen_composition", "seen"} and part["by_task_type"]
        assert part["prompts"] == 3
        low, high = part["interval_95"]["reward"]
        assert low <= part["reward"] <= high
    before, after, gain = (summary["validation"][name] for name in ("before", "after", "gain"))
    assert gain["reward"]["mean"] == pytest.approx(after["reward"] - before["reward"])
    assert summary["steps"] == 5 and summary["seed"] == 3 and summary["peak_memory_gb"] > 0.1
    assert summary["seconds"]["total"] > summary["seconds"]["rollout"] > 0
    assert {"python", "torch", "lightning", "egrpo"} <= set(summary["versions"])
    assert summary["git_commit"] is None or len(summary["git_commit"].removesuffix("+changes")) == 40
    assert summary["config"]["seed"] == 3


def test_the_trained_model_is_also_validated_as_asked_for(folder, summary):
    """Its rows are its own: neither the usual validation's columns nor its best checkpoint see them."""
    (row,) = [row for row in metrics(folder) if "val/without_plan/reward" in row]
    assert row["step"] == "5" and "val/reward" not in row
    assert float(row["val/without_plan/oracle"]) == summary["validation"]["without_plan"]["oracle"]
    assert summary["validation"]["without_plan"]["reward"] != summary["validation"]["after"]["reward"]


def test_an_unknown_setting_to_validate_under_is_told_before_anything_is_drawn(runs, tmp_path):
    with pytest.raises(
        ValueError, match=r"also_validate.odd.cfg: there is no such setting; choose from batch_size, cfg_weight"
    ):
        runs.run(tmp_path, "+also_validate.odd={cfg: 2}")
    assert not (tmp_path / "metrics.csv").exists()


def test_the_summary_tells_what_the_metrics_tell(folder, summary):
    validated = [row for row in metrics(folder) if "val/reward" in row]
    for row, name in ((validated[0], "before"), (validated[-1], "after")):
        assert float(row["val/reward"]) == pytest.approx(summary["validation"][name]["reward"], abs=1e-6)


def test_a_validation_draws_the_same_random_numbers_every_time(runs, tmp_path):
    """A run that learns nothing validates equally before and after."""
    rows = [row for row in runs.run(tmp_path, "optimizer.lr=0") if "val/reward" in row]
    assert len(rows) == 2 and {**rows[0], "step": ""} == {**rows[1], "step": ""}


def test_a_new_run_in_the_folder_of_one_that_came_to_nothing_keeps_the_older_metrics(runs, tmp_path):
    first = runs.run(tmp_path, "trainer.max_steps=1")
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    again = runs.run(tmp_path, "trainer.max_steps=1")
    assert first == again and (tmp_path / "metrics.previous_1.csv").exists()


def test_trackers_are_written_offline(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    more = ("trainer.max_steps=1", "callbacks.samples.every_n_train_steps=1", "callbacks.entropy.every_n_train_steps=1")
    runs.run(tmp_path / "wandb", "logger=wandb", *more)
    assert [p for p in (tmp_path / "wandb" / "wandb").glob("offline-run-*/*.wandb") if p.stat().st_size > 1000]
    runs.run(tmp_path / "tensorboard", "logger=tensorboard", *more)
    assert list((tmp_path / "tensorboard").glob("tensorboard/events.out.tfevents.*"))
    for name in ("wandb", "tensorboard"):
        assert [row["step"] for row in metrics(tmp_path / name)] == ["0", "1", "1", "1"]
