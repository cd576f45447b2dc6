"""Which weights are evaluated: a model, a run, one of its checkpoints, or all of them from the untouched model on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from egrpo.base.errors import UserError
from egrpo.checkpoints import all_checkpoints
from egrpo.policies import is_export, load_policy, load_untouched, run_of, weights_stamp
from egrpo.policy import JanusPolicy

ALL = "all"


def unknown() -> None:
    """The stamp of weights that only loading tells."""


@dataclass(frozen=True)
class State:
    """Weights to evaluate: what they are called, where their images go, how they are loaded, at which step.

    `stamp` tells the weights without loading them, as `egrpo.policies.weights_stamp`.
    """

    label: str
    folder: Path
    load: Callable[[], JanusPolicy]
    step: int = 0
    stamp: Callable[[], str | None] = unknown


def states(
    folder: Path,
    model: DictConfig,
    ckpt_path: str | None,
    checkpoints: str | None,
    name: str,
    label: str | None,
    given: Sequence[str],
) -> Iterator[State]:
    """One state; with `checkpoints` "all" the untouched model and each checkpoint of the run, a folder each.

    Args:
        folder: Of the evaluation.
        model, ckpt_path, given: As `load_policy` takes them.
        checkpoints: "all", or None for one state.
        name: Of a model that is from no run.
        label: What one state is called in the table; None = by the model's name or the run's.

    Raises:
        UserError: `checkpoints` is something else, or there is no run that it could be of.
    """
    if checkpoints is None:
        label = label or (name if ckpt_path is None else run_label(ckpt_path))
        stamp_of_one = partial(weights_stamp, model, ckpt_path, given=given)
        yield State(label, folder, partial(load_policy, model, ckpt_path, given=given), stamp=stamp_of_one)
        return
    if checkpoints != ALL or ckpt_path is None:
        raise UserError(
            f"checkpoints={checkpoints} with ckpt_path={ckpt_path}: give checkpoints=all with the folder of a run, or "
            "for one checkpoint its file as ckpt_path alone"
        )
    found = all_checkpoints(run_of(ckpt_path)[0])
    for step in dict.fromkeys([0, *found]):
        source = found.get(step)
        load = partial(load_policy, model, source) if source else partial(load_untouched, model, ckpt_path)
        stamp: Callable[[], str | None] = partial(weights_stamp, model, source, given=given) if source else unknown
        yield State(f"step {step}", folder / f"step_{step:06d}", partial(load, given=given), step, stamp)


def run_label(ckpt_path: str) -> str:
    """What a run, its checkpoint or its export is called in a table."""
    if is_export(ckpt_path):
        return Path(ckpt_path).resolve().name
    folder, checkpoint = run_of(ckpt_path)
    return f"{folder.resolve().name}, {checkpoint.stem}"
