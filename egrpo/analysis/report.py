"""From the table of images to `statistics.json`, `figures/` and `report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from egrpo.analysis.study import StudyDescription, TokenReader


def write_report(
    folder: Path,
    records: pd.DataFrame,
    study: StudyDescription,
    *,
    tokens: TokenReader | None = None,
    embeddings: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes `statistics.json`, `figures/*.png` and `*.pdf`, and `report.html` into the study's folder.

    Args:
        folder: Of the study; image files of the table are relative to it.
        records: One row an image (columns in `egrpo.analysis.records`).
        study: What was asked.
        tokens: Reads the tokens of a setting's images of one prompt; without it what needs them is left out, and said.
        embeddings: [images, D] of the images, rows as in `records`; without them diversity is that of image tokens.

    Returns:
        What `statistics.json` holds.

    Raises:
        ValueError: the table has no rows, lacks columns, or holds settings that the study does not name.
    """
    raise NotImplementedError
