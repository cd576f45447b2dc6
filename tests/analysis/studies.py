"""Tiny studies of the shipped model: two settings, three prompts, two plans of two images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from egrpo import analyze as command
from egrpo.analysis.setup import work_of
from egrpo.analysis.work import Work
from egrpo.paths import config_dir

TINY = [
    *(
        "num_prompts=3",
        "plans_per_prompt=2",
        "images_per_plan=2",
        "model.max_plan_tokens=6",
        "processes=1",
        "logger=none",
    ),
    *("reward=[shapes_oracle]", "report.resamples=100"),
]


def config(folder: Path, *more: str) -> DictConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("analyze", [*TINY, f"run_dir={folder}", *more])


def work(folder: Path, *more: str) -> Work:
    return work_of(config(folder, *more))


def draw(folder: Path, monkeypatch: Any, *more: str) -> None:
    """The whole command but for the report."""
    monkeypatch.setattr(command, "write_report", lambda *args, **kwargs: {})
    command.analyze(config(folder, *more))


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file that holds what was drawn, by its name."""
    paths = [
        folder / "records.parquet",
        *(p for name in ("images", "tokens", "parts") for p in (folder / name).rglob("*")),
    ]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if path.is_file()
    }
