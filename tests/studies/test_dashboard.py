"""What a study's runs leave for W&B, read back from disk, and the workspace that shows it."""

from __future__ import annotations

import json

import pytest

from egrpo.dashboard import dashboard
from egrpo.studies.workspace import build_workspace
from tests.conf.helpers import composed
from tests.studies.offline import read_offline
from tests.training.conftest import Runs, prompts, runs

__all__ = ["prompts", "runs"]
WORDS = ("study=method", "entity=lab")


def test_an_offline_run_has_its_study_and_every_metric_of_the_workspace(runs: Runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    study = ("study.name=method", "study.setting=plain", "study.run=plain/seed_0", "study.tags=[a,b]")
    runs.run(tmp_path, "logger=wandb", "trainer.max_steps=1", "callbacks.entropy.every_n_train_steps=1", *study)
    run = read_offline(tmp_path)
    assert (run.name, run.group, run.job_type, run.tags) == ("plain/seed_0", "method", "plain", ["a", "b"])
    assert run.config["study/name"] == "method" and run.config["study/setting"] == "plain"
    assert run.config["optimizer/lr"] == 1e-3 and run.config["entropy_policy/segments"] == ["text", "image"]
    assert not [key for key in run.config if key.startswith(("module", "ensemble"))]
    assert not [value for key, value in run.config.items() if isinstance(value, dict) and value and key[0] != "_"]
    shown = {metric for metrics in composed("dashboard", *WORDS).sections.values() for metric in metrics}
    sometimes = {name for name in shown if "/correlation" in name}  # only where entropies vary with reward
    assert shown - sometimes <= run.metrics and "trainer/global_step" in run.metrics


def test_the_workspace_shows_the_study_in_named_sections(tmp_path, capsys):
    cfg = composed("dashboard", *WORDS, f"target={tmp_path / 'new' / 'it.json'}")
    dashboard(cfg)
    told = json.loads((tmp_path / "new" / "it.json").read_text())
    assert (told["entity"], told["project"], told["displayName"]) == ("lab", "egrpo", "study: method")
    section = told["spec"]["section"]
    sections = section["panelBankConfig"]["sections"]
    assert [part["name"] for part in sections] == list(cfg.sections)
    first = sections[0]["panels"][0]["config"]
    assert first["metrics"] == ["val/strict"] and first["xAxis"] == "trainer/global_step"
    assert first["groupBy"].startswith("study/setting") and first["groupAgg"] == "mean"
    (rows,) = section["runSets"]
    assert rows["filters"]["filters"][0]["key"] == {"section": "config", "name": "study/name"}
    assert rows["filters"]["filters"][0]["value"] == "method"
    out = capsys.readouterr().out
    assert "wandb sync outputs/studies/method" in out and "upload=true" in out


def test_without_a_key_nothing_is_sent_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="upload=true needs a W&B key: run `wandb login`"):
        dashboard(composed("dashboard", *WORDS, f"target={tmp_path / 'it.json'}", "upload=true"))
    assert (tmp_path / "it.json").exists()


@pytest.mark.parametrize("sections, told", [({}, "names no section"), ({"A": []}, "sections.A names no metric")])
def test_a_workspace_without_metrics_is_refused(sections, told):
    with pytest.raises(ValueError, match=told):
        build_workspace("method", "lab", "egrpo", "study/setting", [], sections)
