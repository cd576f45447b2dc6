"""The trajectory of one process, which every strategy must repeat."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.trajectory import trajectory
from tests.training.conftest import prompts, runs

__all__ = ["prompts", "runs"]


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    name = os.environ.get("CXX", "c++")
    if "deepspeed" in request.node.name and shutil.which(name) is None:
        pytest.skip(f"DeepSpeed compiles parts of itself at first use, and there is no C++ compiler {name} here")


@pytest.fixture(scope="session")
def alone(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trajectory(prompts, tmp_path_factory.mktemp("alone"))
