"""The trajectory of one process, which every strategy must repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.trajectory import trajectory
from tests.training.conftest import prompts, runs

__all__ = ["prompts", "runs"]


@pytest.fixture(scope="session")
def alone(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trajectory(prompts, tmp_path_factory.mktemp("alone"))
