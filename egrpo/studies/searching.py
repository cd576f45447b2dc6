"""How Optuna's trials become training runs, and how those that were left unfinished are taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from egrpo.base.errors import UserError
from egrpo.base.stopping import Stopped
from egrpo.settings import override
from egrpo.studies.trials import TrialError, Trials, TrialStoppedError

JOURNAL, DATABASE = "search.journal", "search.db"  # in the search's folder


def suggest(trial: Any, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Key -> value for an Optuna trial.

    Raises:
        UserError: an entry of the space lacks what it needs, or has something else.
    """
    out = {}
    for name, entry in space.items():
        rest = {k: v for k, v in entry.items() if k != "key"}
        if "key" not in entry or set(rest) - {"log", "integer"} not in ({"choices"}, {"low", "high"}):
            raise UserError(f"space.{name} needs a key, and either choices, or low and high: {dict(entry)}")
        _check_range(f"space.{name}", rest)
        if "choices" in rest:
            out[entry["key"]] = trial.suggest_categorical(name, rest["choices"])
        elif rest.get("integer"):
            out[entry["key"]] = trial.suggest_int(name, rest["low"], rest["high"], log=rest.get("log", False))
        else:
            out[entry["key"]] = trial.suggest_float(name, rest["low"], rest["high"], log=rest.get("log", False))
    return out


def _check_range(place: str, entry: Mapping[str, Any]) -> None:
    """Raises UserError for choices or a range that hold nothing to choose."""
    if "choices" in entry:
        if not isinstance(entry["choices"], list) or not entry["choices"]:
            raise UserError(f"{place}.choices={entry['choices']}: give a list of values, null among them if wanted")
        return
    low, high, kind = entry["low"], entry["high"], int if entry.get("integer") else int | float
    if isinstance(low, bool) or isinstance(high, bool) or not (isinstance(low, kind) and isinstance(high, kind)):
        raise UserError(f"{place}: low={low} and high={high}: give two {'whole ' if kind is int else ''}numbers")
    if low > high or (entry.get("log") and low <= 0):
        raise UserError(f"{place}: low={low} and high={high}: low must not be above high, and with log=true above 0")


def storage_of(choice: str, folder: Path) -> Any:
    """Where Optuna keeps the trials.

    Args:
        choice: "journal": a file that only grows, which shared disks bear too. "sqlite": a database file, for a local
            disk. Else an address as SQLAlchemy writes it, such as postgresql://USER@HOST/NAME.
        folder: Of the search. One that an earlier version began with a database goes on with it.

    Raises:
        UserError: the choice is none of these, or what lies there cannot be read.
    """
    journal, database = folder / JOURNAL, folder / DATABASE
    if choice == "journal" and database.exists() and not journal.exists():
        choice = "sqlite"
    try:
        if choice == "journal":
            return JournalStorage(JournalFileBackend(str(journal)))
        if choice == "sqlite" or "://" in choice:
            storage = f"sqlite:///{database}" if choice == "sqlite" else choice
            return optuna.storages.get_storage(storage)
    except Exception as error:  # of the database's driver, the file's format, the connection
        where = {"journal": journal, "sqlite": database}.get(choice, "storage")
        raise UserError(f"{where}: the search's trials cannot be read: {str(error).splitlines()[0]}") from error
    raise UserError(
        f"storage={choice}: choose journal or sqlite, or give an address such as postgresql://USER@HOST/NAME"
    )


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
    told = " ".join(override(key, value) for key, value in chosen.items())

    def stop(value: float, step: int) -> bool:
        trial.report(value, step)
        return trial.should_prune()

    try:
        score = trials.run(name, chosen, stop)
    except (KeyboardInterrupt, Stopped):
        trial.set_user_attr("stopped", True)
        raise
    except TrialError as error:
        if isinstance(error, TrialStoppedError):
            trial.set_user_attr("stopped", True)
        print(f"{name}: {told}: failed: {error}", flush=True)
        raise
    print(f"{name}: {told}: {'pruned' if score is None else f'{trials.score} {score:.4f}'}", flush=True)
    if score is None:
        raise optuna.TrialPruned()
    return score


def folder_of(trial: FrozenTrial | optuna.Trial) -> str:
    return str(trial.user_attrs.get("folder") or f"trial_{trial.number:04d}")
