"""Where the shared material is: prompts, golden values and conformance packs of the published code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "EGRPO_SHARED"
BESIDE = Path(__file__).resolve().parents[2] / "shared"  # next to the checkout


def shared_path(*parts: str) -> Path:
    """A file or folder of the shared material; the calling test is skipped where there is no such material.

    The environment variable EGRPO_SHARED names a folder with the same layout that takes the place of `../shared`.

    Raises:
        FileNotFoundError: EGRPO_SHARED names no folder.
    """
    root = Path(os.environ.get(VARIABLE) or BESIDE)
    if not root.is_dir():
        if os.environ.get(VARIABLE):
            raise FileNotFoundError(f"{VARIABLE}={root} is not a folder: unset it, or give one laid out like ../shared")
        pytest.skip(f"needs the shared material in {root}, which is not part of this checkout (or set {VARIABLE})")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared material in {root} lacks {'/'.join(parts)}")
    return path
