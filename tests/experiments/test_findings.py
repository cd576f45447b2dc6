"""Claims over seeds: means, verdicts by the interval over seeds, what is left out."""

import json

import pytest

from experiments.findings.__main__ import SCOPES, main, over_all, read_claims


def claim(text, value, verdict, expected="below 0"):
    estimate = {"value": value, "low": value - 0.3, "high": value + 0.3}
    return {"claim": text, "expected": expected, "estimate": estimate, "margin": 0.1, "verdict": verdict}


@pytest.fixture
def folder(tmp_path):
    """Three seeds: r = -.2, -.3, -.4 of one claim, and one that is too small to matter; a fourth seed is not whole."""
    for seed, value in enumerate((-0.2, -0.3, -0.4)):
        finding = {
            "number": 2,
            "claims": [claim("r", value, "supported" if seed else "unclear")],
            "claims_within_prompts": [claim("r", 0.01 * seed, "unclear")],
        }
        (tmp_path / f"seed_{seed}").mkdir()
        (tmp_path / f"seed_{seed}" / "statistics.json").write_text(json.dumps({"findings": [finding]}))
    (tmp_path / "seed_9").mkdir()
    return tmp_path


def test_claims_are_judged_over_seeds(folder):
    rows = over_all(read_claims(folder)).set_index("scope")
    over = rows.over[SCOPES["claims"]]
    assert over.estimate.value == pytest.approx(-0.3) and over.seeds == 3
    assert rows.verdict.to_list() == ["supported", "not supported"]
    assert rows.alone.to_list() == ["2 of 3", "0 of 3"]


def test_all_is_left_in_files_and_the_missing_seed_is_named(folder, capsys):
    main(folder, folder)
    assert "| r | all images | below 0 | -.300" in (folder / "table.md").read_text()
    assert len((folder / "results.csv").read_text().splitlines()) == 7 and (folder / "findings.png").stat().st_size > 0
    assert "3 seeds; without statistics.json: seed_9" in capsys.readouterr().out


def test_a_folder_without_an_analysis_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no seed_\*/statistics.json"):
        main(tmp_path, tmp_path)
