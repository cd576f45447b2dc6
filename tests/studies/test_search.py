"""The search: what it asks Optuna for, what it takes up again, and a real one of two trials."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.trial import FixedTrial, TrialState

from egrpo.base.errors import UserError
from egrpo.search import report
from egrpo.studies.searching import one_trial, storage_of, suggest, take_up
from egrpo.studies.trials import TrialError, Trials
from tests.distributed.ranks import REPO, environment

SPACE: dict[str, dict[str, Any]] = {
    "lr": {"key": "optimizer.lr", "low": 1e-4, "high": 1e-3, "log": True},
    "size": {"key": "rollout.group_size", "low": 2, "high": 8, "integer": True},
    "policy": {"key": "entropy_policy", "choices": ["uniform", "entropy_guided"]},
}


class Scripted(Trials):
    """Trials whose scores are given; a score that is an exception is raised."""

    def __init__(self, folder: Path, *scores: Any) -> None:
        super().__init__(folder, [], [0], "strict", 1)
        object.__setattr__(self, "scores", list(scores))
        object.__setattr__(self, "asked", [])

    def run(self, name: str, chosen: Any, stop: Any) -> float | None:
        self.asked.append((name, dict(chosen)))  # type: ignore[attr-defined]
        score = self.scores.pop(0)  # type: ignore[attr-defined]
        if isinstance(score, BaseException):
            raise score
        return None if score is None or stop(score, 1) else score


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    return optuna.create_study(storage=storage, direction="maximize", pruner=optuna.pruners.NopPruner())


def test_settings_are_suggested_by_key():
    trial = FixedTrial({"lr": 5e-4, "size": 4, "policy": "uniform"})
    assert suggest(trial, SPACE) == {"optimizer.lr": 5e-4, "rollout.group_size": 4, "entropy_policy": "uniform"}


@pytest.mark.parametrize(
    "entry", [{"low": 0, "high": 1}, {"key": "seed", "low": 0}, {"key": "seed", "low": 0, "high": 1, "choices": [0]}]
)
def test_a_space_that_is_none_is_told(entry):
    with pytest.raises(ValueError, match=r"space.odd needs a key, and either choices, or low and high"):
        suggest(FixedTrial({}), {"odd": entry})


def test_scores_failures_and_pruned_trials_are_told_apart(study, tmp_path, capsys):
    trials = Scripted(tmp_path, 0.5, TrialError("no memory"), None)
    study.optimize(lambda trial: one_trial(trial, trials, SPACE), 3, catch=(TrialError,))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]
    assert [name for name, _ in trials.asked] == ["trial_0000", "trial_0001", "trial_0002"]
    cfg = OmegaConf.create({"folder": str(tmp_path), "space": SPACE, "overrides": ["a=1"], "score": "strict"})
    report(study, cfg)
    out = capsys.readouterr().out
    assert "failed: no memory" in out and "1 complete, 1 fail, 1 pruned" in out and "strict 0.5000" in out
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 3
    assert OmegaConf.load(tmp_path / "best.yaml").overrides[0] == "a=1"


def test_a_search_without_a_whole_trial_ends_with_an_error(study, tmp_path):
    with pytest.raises(ValueError, match="no trial came to its end"):
        report(study, OmegaConf.create({"folder": str(tmp_path), "score": "strict"}))


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_unfinished_trial_goes_on_in_its_folder_once(study, tmp_path, how):
    if how == "stopped":
        with pytest.raises(KeyboardInterrupt):
            study.optimize(lambda trial: one_trial(trial, Scripted(tmp_path, KeyboardInterrupt()), SPACE), 1)
    else:
        trial = study.ask()
        suggest(trial, SPACE)
        trial.set_user_attr("folder", "trial_0000")
    begun = study.trials[0].params
    for _ in range(2):  # an earlier call may have queued it, and been killed before it ran
        take_up(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    trials = Scripted(tmp_path, 0.6)
    study.optimize(lambda trial: one_trial(trial, trials, SPACE), 1)
    assert [name for name, _ in trials.asked] == ["trial_0000"] and study.trials[1].params == begun


@pytest.mark.slow
def test_two_trials_of_one_step_and_nothing_to_do_afterwards(tmp_path):
    words = ["+experiment=shapes_eg_grpo", "+debug=fast", "trainer.max_steps=1", "data.val_batch_size=8"]
    words += ["baseline_temperatures=[]", "logger=none", "callbacks.best=null"]
    own = [f"folder={tmp_path / 'found'}", "trials=2", "jobs=2", f"hydra.run.dir={tmp_path / 'log'}"]
    command = [sys.executable, "-m", "egrpo.search", *own, f"overrides=[{','.join(repr(word) for word in words)}]"]
    for _ in range(2):
        done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2 complete" in done.stdout
    table = pd.read_csv(tmp_path / "found" / "trials.csv")
    assert list(table.state) == ["COMPLETE", "COMPLETE"] and table.value.between(0, 1).all()
    runs = sorted(path.parent for path in (tmp_path / "found").glob("trial_*/seed_100/summary.json"))
    assert [run.parent.name for run in runs] == ["trial_0000", "trial_0001"]
    chosen = OmegaConf.load(runs[0] / "config.yaml").optimizer.lr
    assert chosen == pytest.approx(table.params_lr[0])


def test_null_and_texts_with_commas_and_braces_reach_training_as_they_are(tmp_path, monkeypatch):
    chosen = {
        "rollout.top_k": None,
        "model.templates.image": "{prompt}, it's {plan}",
        "entropy_policy.segments": ["text", "image"],
        "rollout.cot": True,
        "entropy_policy": "uniform",
        "study.setting": "null",
    }
    started: list[list[str]] = []

    class Finished:
        returncode = 0

        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

        def poll(self) -> int:
            return 0

        wait = poll

    monkeypatch.setattr("egrpo.studies.trials.subprocess.Popen", Finished)
    folder = tmp_path / "a, b=c"
    seed = folder / "trial_0000" / "seed_0"
    seed.mkdir(parents=True)
    (seed / "summary.json").write_text('{"validation": {"after": {"strict": 0.5}}}')
    trials = Trials(folder, ["+experiment=shapes_eg_grpo"], [0], "strict", 1)
    assert trials.run("trial_0000", chosen, lambda value, step: False) == 0.5
    words = [OverridesParser.create().parse_override(word) for word in started[0][3:]]
    read = {word.key_or_group: word.value() for word in words}
    assert read == {**chosen, "experiment": "shapes_eg_grpo", "seed": 0, "go_on": True, "hydra.run.dir": str(seed)}


def test_what_was_found_is_printed_for_a_shell(study, tmp_path, capsys):
    space = {"text": {"key": "study.setting", "choices": ["a, b"]}, "k": {"key": "rollout.top_k", "choices": [None]}}
    study.optimize(lambda trial: one_trial(trial, Scripted(tmp_path, 0.5), space), 1)
    report(study, OmegaConf.create({"folder": str(tmp_path), "space": space, "overrides": ["a=1"], "score": "strict"}))
    line = next(line for line in capsys.readouterr().out.splitlines() if "-m egrpo.train" in line)
    assert shlex.split(line)[4:] == ["a=1", "study.setting='a, b'", "rollout.top_k=null", "seed=0,1,2,3,4"]
    assert OmegaConf.load(tmp_path / "best.yaml").overrides == ["a=1", "study.setting='a, b'", "rollout.top_k=null"]


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"low": "a", "high": 1}, "low=a and high=1: give two numbers"),
        ({"low": 0.5, "high": 2, "integer": True}, "low=0.5 and high=2: give two whole numbers"),
        ({"low": 2, "high": 1}, "low=2 and high=1: low must not be above high"),
        ({"low": 0, "high": 1, "log": True}, "with log=true above 0"),
        ({"choices": []}, r"choices=\[\]: give a list of values"),
        ({"choices": "a"}, "choices=a: give a list of values"),
    ],
)
def test_a_range_with_nothing_to_choose_is_refused(entry, said):
    with pytest.raises(UserError, match=f"^space.odd.*{said}"):
        suggest(FixedTrial({"odd": 1}), {"odd": {"key": "seed", **entry}})


def test_trials_lie_in_a_journal_unless_another_storage_is_chosen(tmp_path):
    storage = storage_of("journal", tmp_path)
    optuna.create_study(study_name="s", storage=storage).add_trial(optuna.create_trial(value=0.5))
    assert (tmp_path / "search.journal").stat().st_size and not (tmp_path / "search.db").exists()
    assert optuna.load_study(study_name="s", storage=storage_of("journal", tmp_path)).best_value == 0.5
    storage_of("sqlite", tmp_path)
    assert (tmp_path / "search.db").exists()


def test_a_search_of_an_earlier_version_keeps_its_database(tmp_path):
    study = optuna.create_study(study_name="s", storage=storage_of("sqlite", tmp_path))
    study.add_trial(optuna.create_trial(value=0.25))
    assert optuna.load_study(study_name="s", storage=storage_of("journal", tmp_path)).best_value == 0.25


@pytest.mark.parametrize(
    "file, choice, said",
    [
        ("search.db", "sqlite", "search.db: the search's trials cannot be read"),
        ("search.journal", "journal", "search.journal: the search's trials cannot be read"),
        ("other", "disk", "storage=disk: choose journal or sqlite, or give an address such as postgresql://"),
    ],
)
def test_a_damaged_or_unknown_storage_is_refused(tmp_path, file, choice, said):
    (tmp_path / file).write_text("no trials\nat all\n")
    with pytest.raises(UserError, match=said):
        storage_of(choice, tmp_path)
