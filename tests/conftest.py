"""What every test may rely on: one thread, no network, the shared material where it is there."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: it reads the thread count once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(WANDB_MODE="offline", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

from tests.shared_data import shared_path

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the shared material: prompts, goldens and conformance packs."""
    return shared_path()
