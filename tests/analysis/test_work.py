"""Which prompts are chosen, what a setting may be, and who may write into a study's folder."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from egrpo.analysis.setup import description
from egrpo.analysis.storage import alone, claim, whole
from egrpo.analysis.work import Setting, Sizes, choose_prompts
from egrpo.data import read_prompts
from egrpo.types import PromptRecord
from tests.analysis.studies import config, work

PROMPTS = "package:egrpo/shapes/assets/prompts/validation.jsonl"
HELD_OUT = ["unseen_prompt", "unseen_composition"]


def test_task_types_take_turns():
    records = read_prompts(PROMPTS)
    chosen = choose_prompts(records, 40, splits=HELD_OUT)
    assert set(Counter(r.task_type for r in chosen).values()) == {5}
    assert {r.extra["split"] for r in chosen} <= set(HELD_OUT)
    assert choose_prompts(records, 13, splits=HELD_OUT) == chosen[:13]
    assert choose_prompts(list(reversed(records)), 40, splits=HELD_OUT) == chosen
    assert choose_prompts(records, 40, splits=HELD_OUT, seed=1) != chosen


def test_equal_prompts_count_once_and_rare_types_run_out():
    records = [
        PromptRecord("a"),
        PromptRecord("a", nouns=["a"]),
        PromptRecord("b"),
        PromptRecord("c", task_type="color"),
    ]
    chosen = choose_prompts(records, 3)
    assert sorted(r.prompt for r in chosen) == ["a", "b", "c"] and chosen[0].task_type == "color"
    assert not next(r for r in chosen if r.prompt == "a").nouns  # the first of equals
    with pytest.raises(ValueError, match="holds only 3 different prompts"):
        choose_prompts(records, 4)
    with pytest.raises(ValueError, match="of the splits seen"):
        choose_prompts(records, 1, splits=["seen"])


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "a b"])
def test_names_of_settings_are_names_of_folders(name: str):
    with pytest.raises(ValueError, match="letters, digits"):
        Setting(name, {})


@pytest.mark.parametrize(
    "override, message",
    [
        ("+settings.base.cott=true", "settings.base.cott: a setting has no such key; it has model, description, cot"),
        ("+settings.base.train=['seed=1']", "settings.base.train: say where the run is kept"),
        ("plans_per_prompt=0", "plans_per_prompt=0: give at least 1"),
        ("~settings.base ~settings.base_cot", "no settings"),
        ("rollout.batch_size=0", "rollout.batch_size=0"),
    ],
)
def test_faults_are_told(tmp_path: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        work(tmp_path, *override.split())


def test_units_are_in_the_order_of_the_table_and_know_their_size(tmp_path: Path):
    tiny = work(tmp_path)
    assert [(u.setting, u.prompt_index) for u in tiny.units] == [(s, i) for s in ("base", "base_cot") for i in range(3)]
    assert [tiny.images(unit) for unit in tiny.units] == [2, 2, 2, 4, 4, 4]
    assert Sizes(1, 3, 2, 5).images(cot=False) == 5


def test_the_description_says_what_was_asked(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step\n")
    given = ["+settings.base_cot.ckpt_path=" + str(tmp_path / "run"), "report.training_pairs=[[base,base_cot]]"]
    cfg = config(tmp_path, *given)
    told = description(cfg, work(tmp_path, *given), ["reward=[shapes_oracle]", "seed=0"])
    assert told.command == "python -m egrpo.analyze 'reward=[shapes_oracle]' seed=0"
    assert told.settings == {"base": "the model as it is, without plans", "base_cot": "the model as it is, with plans"}
    assert told.baseline == "base" and told.training_pairs == [("base", "base_cot")] and told.cot_pair is None
    assert told.runs == {"base": None, "base_cot": tmp_path / "run"}
    assert callable(told.entropy_policy) and "num_prompts: 3" in told.config and told.versions["egrpo"]


def test_a_folder_has_one_writer(tmp_path: Path):
    with alone(tmp_path, "the study in"):
        with pytest.raises(ValueError, match="is being written by another process"), alone(tmp_path, "the study in"):
            pass
    with alone(tmp_path, "the study in"):
        pass


def test_several_changes_are_counted(tmp_path: Path):
    claim(tmp_path, {"a": {"b": 1}, "c": [1], "d": {}})
    claim(tmp_path, {"a": {"b": 1}, "c": (1,), "d": {}})
    with pytest.raises(ValueError, match=r"a\.b=2, was 1 and 1 more"):
        claim(tmp_path, {"a": {"b": 2}, "c": [1], "d": {"e": 1}} | {"d": {}, "f": 1})


def test_a_file_is_whole_or_not_there(tmp_path: Path):
    def stopped() -> None:
        with whole(tmp_path / "x" / "file") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list((tmp_path / "x").iterdir())


def test_a_study_does_not_need_the_trainer():
    script = "import sys, egrpo.analyze; sys.exit('egrpo.training' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
