"""One trial of a search: a training run of its own process, a seed after the other, watched while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egrpo.base import stopping
from egrpo.base.errors import UserError
from egrpo.base.stopping import PARENT
from egrpo.launch import is_whole
from egrpo.settings import override
from egrpo.studies.runs import read_metrics
from egrpo.training.resume import SUMMARY

POLL = 1.0  # seconds between looks at a run's metrics
LOG = "training.log"  # what a run prints, in its folder
SEED_STEP = 1_000_000  # a second seed's steps are told to the pruner as this many later


class TrialError(UserError):
    """A trial's training failed."""


class TrialStoppedError(TrialError):
    """A signal ended a trial's training; a search that is started again resumes it."""


@dataclass(frozen=True)
class Trials:
    """How trials are run.

    Args:
        folder: Of the search; each run gets one below it.
        overrides: Of every run.
        seeds: Each a run of the trial.
        score: Judge whose mean over seeds is the trial's result.
        threads: Of a run.
    """

    folder: Path
    overrides: Sequence[str]
    seeds: Sequence[int]
    score: str
    threads: int

    def run(self, name: str, chosen: Mapping[str, Any], stop: Callable[[float, int], bool]) -> float | None:
        """Trains with the chosen settings, or goes on where this trial was left; finished runs are taken as they are.

        Args:
            name: Of the trial, and its folder.
            chosen: Key -> value.
            stop: Told the score of each validation and its step; True ends the trial.

        Returns:
            The mean score over seeds; None if `stop` ended it.

        Raises:
            TrialError: a run failed, or has no such score.
        """
        scores = []
        for at, seed in enumerate(self.seeds):
            folder = self.folder / name / f"seed_{seed}"
            words = [*self.overrides, *(override(key, value) for key, value in chosen.items()), f"seed={seed}"]
            if not self._train(folder, words, lambda value, step, at=at: stop(value, at * SEED_STEP + step)):  # type: ignore[misc]
                return None
            scores.append(self._score(folder))
        return sum(scores) / len(scores)

    def _train(self, folder: Path, words: Sequence[str], stop: Callable[[float, int], bool]) -> bool:
        """Whether the run came to its end."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "egrpo.train", *words, "go_on=true", override("hydra.run.dir", str(folder))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), PARENT: str(os.getpid())}
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        try:
            for value, step in self._validations(folder, process):
                if stop(value, step):
                    return False
        finally:  # stopped by the pruner or by the user: the run must not outlive its trial
            if process.poll() is None:
                process.terminate()
            process.wait()
        if process.returncode or not is_whole(folder):
            raise _failure(process.returncode, folder)
        return True

    def _validations(self, folder: Path, process: subprocess.Popen) -> Iterator[tuple[float, int]]:
        """Score and step of each validation while the process runs, as soon as it is there."""
        seen: set[int] = set()
        running = True
        while running:
            running = process.poll() is None
            column = read_metrics(folder / "metrics.csv").get(f"val/{self.score}")
            for step, value in ({} if column is None else column.dropna()).items():
                if step not in seen:
                    seen.add(int(step))
                    yield float(value), int(step)
            stopping.check()  # the signal went to the search's main thread, which waits for this one
            if running:
                time.sleep(POLL)

    def _score(self, folder: Path) -> float:
        after = json.loads((folder / SUMMARY).read_text())["validation"].get("after", {})
        if self.score not in after:
            raise TrialError(f"{folder}: score={self.score} is none of {sorted(k for k in after if k != 'prompts')}")
        return float(after[self.score])


def _failure(status: int, folder: Path) -> TrialError:
    """What to say of a training that left no whole summary, or failed: its own last words."""
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("error: ", "stopped by "))] or lines
    words = f"{told[-1] if told else 'it printed nothing'} (all it printed: {folder / LOG})"
    number = -status if status < 0 else status - 128
    if number in stopping.SIGNALS:
        return TrialStoppedError(words if told else f"stopped by {stopping.name_of(number)}: {words}")
    return TrialError(words if status else f"it ended without a whole {SUMMARY}: {words}")
