"""How Optuna's trials become training runs, and how those that were left unfinished are taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from egrpo.studies.trials import TrialError, Trials


def suggest(trial: Any, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Key -> value for an Optuna trial.

    Raises:
        ValueError: an entry of the space lacks what it needs, or has something else.
    """
    out = {}
    for name, entry in space.items():
        rest = {k: v for k, v in entry.items() if k != "key"}
        if "key" not in entry or set(rest) - {"log", "integer"} not in ({"choices"}, {"low", "high"}):
            raise ValueError(f"space.{name} needs a key, and either choices, or low and high: {dict(entry)}")
        if "choices" in rest:
            out[entry["key"]] = trial.suggest_categorical(name, rest["choices"])
        elif rest.get("integer"):
            out[entry["key"]] = trial.suggest_int(name, rest["low"], rest["high"], log=rest.get("log", False))
        else:
            out[entry["key"]] = trial.suggest_float(name, rest["low"], rest["high"], log=rest.get("log", False))
    return out


def take_up(study: optuna.Study) -> None:
    """Queues anew what an earlier call left unfinished; each goes on in its own folder."""
    every = study.get_trials(deepcopy=False)
    for trial in every:
        queued = any(t.number > trial.number and folder_of(t) == folder_of(trial) for t in every)
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state != TrialState.FAIL or not trial.user_attrs.get("stopped"):
            continue
        if not queued and trial.params:
            study.enqueue_trial(trial.params, user_attrs={"folder": folder_of(trial)})
            print(f"goes on: {folder_of(trial)}", flush=True)


def one_trial(trial: optuna.Trial, trials: Trials, space: dict[str, dict[str, Any]]) -> float:
    """A trial's score."""
    chosen, name = suggest(trial, space), str(trial.user_attrs.get("folder") or folder_of(trial))
    trial.set_user_attr("folder", name)
    told = " ".join(f"{key}={value}" for key, value in chosen.items())

    def stop(value: float, step: int) -> bool:
        trial.report(value, step)
        return trial.should_prune()

    try:
        score = trials.run(name, chosen, stop)
    except KeyboardInterrupt:
        trial.set_user_attr("stopped", True)
        raise
    except TrialError as error:
        print(f"{name}: {told}: failed: {error}", flush=True)
        raise
    print(f"{name}: {told}: {'pruned' if score is None else f'{trials.score} {score:.4f}'}", flush=True)
    if score is None:
        raise optuna.TrialPruned()
    return score


def folder_of(trial: FrozenTrial | optuna.Trial) -> str:
    return str(trial.user_attrs.get("folder") or f"trial_{trial.number:04d}")
