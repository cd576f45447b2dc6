"""`metrics.csv`, which every run leaves: one row a step, safe against a kill, continued on resume."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from egrpo.base.files import write_whole, writing


class MetricsFile(Logger):
    """Writes `metrics.csv` in the run's folder. Cells that a row has no value for stay empty; `step` counts optimizer
    steps done.

    A resumed run drops the rows after its checkpoint, which it is about to write again, so that the file always reads
    like that of an uninterrupted run. A new run in a used folder keeps the older file as `metrics.previous_1.csv`
    (or 2, ...).

    Args:
        folder: Of the run.
        resume: Whether the run goes on from a checkpoint.
    """

    def __init__(self, folder: str, resume: bool = False):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        if self.path.exists() and resume:
            with self.path.open(newline="") as file:
                rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
            # A kill may cut the last row short, even within the number of its step.
            self.rows = [row for row in rows if row.get("step", "").isdigit() and len(row) > 1]
        elif self.path.exists():
            self._set_aside()
        self.columns = self._columns()

    @property
    def name(self) -> str:
        return "metrics_file"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Drops the rows that an earlier part of this run wrote after the checkpoint of optimizer step `step`."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        self.columns = self._columns()
        self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row; what is measured anew at the same step (a resumed run's last validation) replaces its row."""
        row = {"step": str(step or 0)} | {name: repr(float(v)) for name, v in metrics.items() if name != "epoch"}
        new = [name for name in row if name not in self.columns]
        older = [i for i, old in enumerate(self.rows) if old["step"] == row["step"] and old.keys() == row.keys()]
        if older:
            self.rows[older[0]] = row
        else:
            self.rows.append(row)
        if new or older or not self.path.exists():
            self.columns += new
            self._rewrite()
        else:
            with writing(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration lies in `config.yaml` already."""

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in [{"step": ""}, *self.rows] for name in row))

    @rank_zero_only
    def _set_aside(self) -> None:
        number = 1
        while (older := self.path.with_name(f"metrics.previous_{number}.csv")).exists():
            number += 1
        os.replace(self.path, older)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue().encode())
