"""What a run that goes on from a checkpoint changes, and what a folder already holds of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from egrpo import distributed
from egrpo.base.errors import FolderTakenError, UserError
from egrpo.base.files import hold
from egrpo.checkpoints import last_checkpoint
from egrpo.launch import SUMMARY as SUMMARY
from egrpo.training.inputs import input_hashes, read_inputs, save_inputs
from egrpo.yaml_files import read_yaml

# What a resumed run may change without a word: nothing that decides what is computed.
NEVER_TOLD = ("ckpt_path", "run_dir", "threads", "logger", "callbacks", "trainer.enable_progress_bar", "go_on", "study")
RUN_DEPTH = 3  # folders above a checkpoint in which its run is looked for: RUN/checkpoints/last.ckpt
REPEATED = ("module", "ensemble")  # what puts the parts together, and so repeats their settings
FREE = (*NEVER_TOLD, "trainer.max_steps")


LOCK = ".run.lock"  # held by the process that trains in the folder; a study that waits for a run holds another


@contextmanager
def training_in(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """Holds the run's folder for this training, on the first rank; another one in it would mix its files with ours.

    Raises:
        FolderTakenError: another process trains in the folder, or it holds a run that a new one would overwrite.
    """
    if distributed.rank() != 0:
        yield
        return
    other = "wait for it, end it, or give this one another folder with hydra.run.dir=FOLDER"
    with hold(folder, "the run in", name=LOCK, remedy=other):
        check_new(cfg, folder)
        yield


def check_new(cfg: DictConfig, folder: Path) -> None:
    """Whether the run may write here: a new folder, a run that is resumed, or one that came to nothing.

    Raises:
        FolderTakenError: the folder holds a finished run, or one with a checkpoint, and this run does not resume it.
    """
    own = cfg.ckpt_path is not None and folder.resolve() in Path(cfg.ckpt_path).resolve().parents
    last = last_state(folder)
    if cfg.go_on or own or not (last or (folder / SUMMARY).exists()):
        return
    held = "a finished run" if (folder / SUMMARY).exists() else "a run that was stopped after its last checkpoint"
    resumed = f"resume that run with ckpt_path={last} hydra.run.dir={folder}" if last else "move that run away"
    raise FolderTakenError(
        f"{folder} holds {held}, which a new run would overwrite: give the new run another folder with "
        f"hydra.run.dir=FOLDER, {resumed}, or let go_on=true skip a finished run and resume another"
    )


def changed_settings(cfg: DictConfig, folder: Path) -> list[str]:
    """What differs from the run that `cfg.ckpt_path` belongs to, "name=new (was old)" each, files' contents included.

    A run that resumes with other settings reads like one experiment and is two; what may change freely is left out.
    The run is the one whose folder holds the checkpoint, else the one in `folder`; without either, nothing is known.
    """
    return [] if cfg.ckpt_path is None else _differences(cfg, folder_of_checkpoint(cfg.ckpt_path) or folder, FREE)


def folder_of_checkpoint(ckpt_path: str | Path) -> Path | None:
    """The folder of the run that a checkpoint lies in; None where no config.yaml is above it."""
    above = list(Path(ckpt_path).expanduser().absolute().parents)[:RUN_DEPTH]
    return next((folder for folder in above if (folder / "config.yaml").is_file()), None)


def keep_inputs(cfg: DictConfig, folder: Path) -> None:
    """Records the contents of the files that the settings name, for a later resume."""
    save_inputs(folder, _input_hashes(cfg))


def is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether the folder holds this very run, whole, for a sweep that is started again (`go_on=true`).

    Raises:
        UserError: the folder holds a run with other settings, whole or not: neither may stand for this one.
    """
    changed = _differences(cfg, folder, NEVER_TOLD)
    if changed:
        raise UserError(
            f"go_on=true, but {folder} holds a run with other settings: {', '.join(changed)}; choose another folder "
            "(hydra.sweep.dir=, hydra.run.dir=), or move that one away"
        )
    try:
        json.loads((folder / SUMMARY).read_text())
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise UserError(
            f"{folder / SUMMARY} is damaged ({error}); remove it, and the run goes on from its last checkpoint"
        ) from error
    return True


def last_state(folder: Path) -> str | None:
    """The checkpoint that an unfinished run in this folder can go on from; None = it begins anew."""
    last = last_checkpoint(folder)
    return None if last is None else str(last)


def flat_settings(node: Any, join: str = ".") -> dict[str, Any]:
    """Nested settings as one mapping, keys joined: "optimizer.lr". An empty mapping stays a value."""
    return _flat(node, "", join)


def told_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as trackers filter by them: flat, "optimizer/lr", each once (a dot would read as nesting there)."""
    return flat_settings({k: v for k, v in settings.items() if k not in REPEATED}, "/")


def decisive_settings(settings: Mapping[str, Any], free: Sequence[str] = NEVER_TOLD) -> dict[str, Any]:
    """What decides a run's numbers, flat: two runs in which all of it is equal are the same run."""
    flat = _without_place(settings)
    return {k: v for k, v in flat.items() if not any(k == key or k.startswith(key + ".") for key in free)}


def _differences(cfg: DictConfig, folder: Path, free: Sequence[str]) -> list[str]:
    before = folder / "config.yaml"
    if not before.is_file():
        return []
    containers: Any = [OmegaConf.to_container(c, resolve=True) for c in (read_yaml(before), cfg)]
    old, new = (decisive_settings(settings, free) for settings in containers)
    told = [
        f"{name}={new.get(name)} (was {old.get(name)})"
        for name in sorted(old.keys() | new.keys())
        if _or_null(old.get(name)) != _or_null(new.get(name))
    ]
    was, now = read_inputs(folder), _input_hashes(cfg)
    return told + [
        f"the content of {name}={new.get(name)} (SHA-256 {now[name][:12]}, was {was[name][:12]})"
        for name in sorted(was.keys() & now.keys())
        if was[name] != now[name] and old.get(name) == new.get(name)
    ]


def _input_hashes(cfg: DictConfig) -> dict[str, str]:
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    own = {name: value for name, value in settings.items() if name not in (*REPEATED, *NEVER_TOLD)}
    return input_hashes(flat_settings(own))


def _or_null(value: Any) -> Any:
    """An empty mapping and null mean the same."""
    return None if value == {} else value


def _without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings in which the run's own folder has no name: a folder that was moved holds the same run."""
    place = settings.get("run_dir")
    flat = flat_settings(dict(settings))
    return {k: v.replace(place, "RUN") if place and isinstance(v, str) else v for k, v in flat.items()}


def _flat(node: Any, prefix: str, join: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix[: -len(join)]: node}
    return {n: v for key, child in node.items() for n, v in _flat(child, f"{prefix}{key}{join}", join).items()}
