"""One tiny study that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.studies import draw


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn with guidance of 1.5: conditional and guided entropies differ."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        draw(folder, patch, "rollout.cfg_weight=1.5")
    return folder
