"""`python -m egrpo.collect` on made-up sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from egrpo.collect import collect
from tests.conf.helpers import CONF
from tests.studies.made_up import begin_run, make_run


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF / "collect"), version_base="1.3"):
        return compose("collect", [*overrides, "resamples=200"])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two by two settings, three seeds each, and a run that was cut."""
    folder = tmp_path_factory.mktemp("sweep")
    for high in (0.3, 0.5):
        for low in (0.1, 0.2):
            for seed in range(3):
                name = f"high_{high}_low_{low}"
                words = (f"high={high}", f"low={low}")
                more = {"setting": name, "baseline": "high_0.5_low_0.2"}
                make_run(folder / name / f"seed_{seed}", 0.5 + high / 2 + seed / 100, seed, *words, **more)
    begin_run(folder / "cut", 9, "high=0.3", "low=0.1")
    return folder


def test_a_sweep_becomes_a_table_results_a_fragment_and_figures(sweep, tmp_path, capsys):
    collect(config(f"sweep={sweep}", f"target={tmp_path}"))
    table = pd.read_csv(tmp_path / "runs.csv")
    assert len(table) == 13 and list(table.status.value_counts().items()) == [("finished", 12), ("partial", 1)]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["baseline"] == "high_0.5_low_0.2" and results["varied"] == ["high", "low"]
    lower = results["settings"]["high_0.3_low_0.1"]["differences"]["strict"]
    assert lower["value"] == pytest.approx(-0.1) and lower["verdict"] == "lower"
    other = results["settings"]["high_0.3_low_0.1"]["differences"]["strict@with_plan"]
    assert other["value"] == pytest.approx(lower["value"])
    assert results["left_out"] == ["partial: cut: 0 steps so far, no summary.json"]
    assert set(results["figures"]) == {"intervals", "curve_val_strict", "judge_and_reward", "map"}
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == set(results["figures"])
    told = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in told
    assert told.splitlines()[-3:] == [results["left_out"][0], "13 runs: 12 finished, 1 partial", str(tmp_path)]


def test_many_settings_get_a_panel_each(tmp_path):
    for beta in range(8):
        make_run(tmp_path / str(beta), 0.5 + beta / 100, 0, f"beta={beta}")
    collect(config(f"sweep={tmp_path}"))
    results = json.loads((tmp_path / "collected" / "results.json").read_text())
    assert list(results["settings"])[:2] == ["beta=0", "beta=1"] and results["baseline"] == "beta=0"
    assert "map" not in results["figures"]


def test_it_can_be_collected_again_where_it_was_collected(sweep):
    for _ in range(2):
        collect(config(f"sweep={sweep}", "curves=[]", "proxy=none"))
    assert len(pd.read_csv(sweep / "collected" / "runs.csv")) == 13


def test_nothing_finished_is_an_error_that_names_every_run(tmp_path):
    begin_run(tmp_path / "0", 0)
    with pytest.raises(ValueError, match=r"none of the 1 runs is finished\npartial: 0: 0 steps so far"):
        collect(config(f"sweep={tmp_path}"))


def test_a_judge_that_no_run_has_is_told(sweep):
    with pytest.raises(ValueError, match=r"judge=beauty: no finished run has this score; choose of .*oracle"):
        collect(config(f"sweep={sweep}", "judge=beauty"))
