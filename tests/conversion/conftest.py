"""The tiny Janus in the original format, and what it converts to."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from egrpo.conversion import janus


@pytest.fixture(scope="session")
def janus_source(shared: Path) -> Path:
    return shared / "conformance" / "janus_original_tiny"


@pytest.fixture(scope="session")
def janus_stored(janus_source: Path) -> dict[str, Tensor]:
    return load_file(janus_source / "model.safetensors")


@pytest.fixture(scope="session")
def janus_converted(janus_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("janus")
    janus.convert(janus_source, target)
    return target


@pytest.fixture
def janus_copy(janus_source: Path, tmp_path: Path) -> Path:
    """The source folder without its weights, to be changed."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "tiny_dims.json"):
        (folder / name).write_bytes((janus_source / name).read_bytes())
    return folder
