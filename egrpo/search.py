"""`python -m egrpo.search`: settings sought by Optuna, with training runs that any other run could be.

Leaves in its folder: search.journal (all trials; a search that is started again resumes, and so do unfinished runs),
trials.csv, best.yaml, and a folder a trial. Optuna drives the runs from outside, so that its version is its own matter.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

import optuna
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from egrpo.base.errors import UserError
from egrpo.base.files import hold, write_whole
from egrpo.base.targets import claim_target
from egrpo.entry import run
from egrpo.settings import override
from egrpo.studies.searching import DATABASE, JOURNAL, folder_of, one_trial, storage_of, suggest, take_up
from egrpo.studies.trials import TrialError, Trials

RESUME = "finished trials are kept; the same command resumes the others in their folders"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def search(cfg: DictConfig) -> None:
    """Runs trials until there are as many as wanted, then tells the best.

    Raises:
        UserError: no trial came to its end, or the space is not one.
    """
    if not str(cfg.name).strip():
        raise UserError("name= is empty (a variable that is not set?): give the search a name")
    folder = Path(cfg.folder)
    space = cast(dict[str, dict[str, Any]], OmegaConf.to_container(cfg.space, resolve=True))
    trials = Trials(folder, list(cfg.overrides), list(cfg.seeds), cfg.score, cfg.threads)
    suggest(optuna.trial.FixedTrial({k: _some(v) for k, v in space.items()}), space)  # a wrong space is told now
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    claim_target(folder, "folder", "search", names=("trials.csv", "best.yaml"), signs=(JOURNAL, DATABASE))
    with hold(folder, "the search in"):
        study = optuna.create_study(
            study_name=cfg.name,
            storage=storage_of(cfg.storage, folder),
            direction="maximize",
            load_if_exists=True,
            sampler=instantiate(cfg.sampler),
            pruner=instantiate(cfg.pruner),
        )
        take_up(study)
        left = cfg.trials - len(study.get_trials(states=DONE))
        if left > 0:
            study.optimize(lambda trial: one_trial(trial, trials, space), left, n_jobs=cfg.jobs, catch=(TrialError,))
        report(study, cfg)
    print(folder)


def report(study: optuna.Study, cfg: DictConfig) -> None:
    """Writes trials.csv and best.yaml; prints the best, and how it is confirmed."""
    folder = Path(cfg.folder)
    write_whole(folder / "trials.csv", study.trials_dataframe().to_csv(index=False).encode())
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise UserError(f"folder={folder}: no trial came to its end; {folder / 'trials.csv'} lists them")
    best = study.best_trial
    chosen = [override(cfg.space[name].key, value) for name, value in best.params.items()]
    found = {"trial": folder_of(best), "score": best.value, "overrides": [*cfg.overrides, *chosen]}
    write_whole(folder / "best.yaml", OmegaConf.to_yaml(OmegaConf.create(found)).encode())
    print(f"best: {folder_of(best)}, {cfg.score} {best.value:.4f}: {shlex.join(chosen)}")
    print("The best of many looks better than it is. Seeds that the search has not seen tell what it is worth:")
    print(f"  python -m egrpo.train -m {shlex.join([*cfg.overrides, *chosen])} seed=0,1,2,3,4")


def _some(entry: dict[str, Any]) -> Any:
    return entry["choices"][0] if entry.get("choices") else entry.get("low")


if __name__ == "__main__":
    run(search, "search", resume=lambda _: RESUME)
