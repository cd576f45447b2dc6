"""Starting `python -m egrpo.train` as a user would, and reading back what it left."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """A training run to start.

    Args:
        folder: Its run directory.
        overrides: Of `python -m egrpo.train`.
        weights: Whether to keep the trained weights, see `Recorder`.
    """

    folder: Path
    overrides: list[str]
    weights: bool = False

    def start(self) -> subprocess.Popen[bytes]:
        """The process, in a session of its own; its output goes to `log.txt` in the run's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = [
            "logger=none",
            f"hydra.run.dir={self.folder}",
            "+callbacks.recorder._target_=experiments.scale.recorder.Recorder",
            f"+callbacks.recorder.folder={self.folder / 'recorded'}",
            f"+callbacks.recorder.weights={str(self.weights).lower()}",
        ]
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "egrpo.train", *self.overrides, *own],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Ends it and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def last_words(self, lines: int = 12) -> str:
        """The end of its output."""
        return "\n".join((self.folder / "log.txt").read_text(errors="replace").splitlines()[-lines:])

    def rows(self) -> list[dict[str, float]]:
        """metrics.csv, a dictionary a training step."""
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            found = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        return [row for row in found if "train/loss" in row]

    def recorded(self) -> list[dict[str, Any]]:
        """What each rank's recorder left."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / "recorded").glob("rank_*.json"))]
