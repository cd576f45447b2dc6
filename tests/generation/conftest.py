"""The shipped model with short plans, and the command as Python calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from egrpo.generate import generate
from egrpo.paths import config_dir
from egrpo.policies import load_policy
from egrpo.policy import JanusPolicy
from tests.training.conftest import Runs, prompts, runs

__all__ = ["Runs", "prompts", "runs"]

PROMPTS = ["a red circle", "two blue squares", "../../etc/passwd", "a green triangle above a red circle", "日本 🎉"]


def config(folder: Path, prompts: Any, *overrides: str) -> Any:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("generate", [f"run_dir={folder}", "prompts=[]", "model.max_plan_tokens=6", *overrides])
    cfg.prompts = prompts
    return cfg


@pytest.fixture(scope="session")
def command() -> Any:
    """(folder, prompts, *overrides): runs the command and gives all files that belong to the images."""

    def run(folder: Path, prompts: Any, *overrides: str) -> dict[str, bytes]:
        generate(config(folder, prompts, *overrides))
        return files_of(folder)

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of all files but Hydra's and the configuration, which names the folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("config.")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != ".lock"}


@pytest.fixture(scope="session")
def policy() -> JanusPolicy:
    return load_policy(config(Path("unused"), []).model)


@pytest.fixture(scope="session")
def whole(command: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing stopped: PROMPTS, 3 images each."""
    return command(tmp_path_factory.mktemp("whole"), PROMPTS, "num_images=3", "batch_size=4")
