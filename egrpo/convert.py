"""`python -m egrpo.convert kind=KIND source=PATH target=DIR`: an official checkpoint as a transformers directory."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from egrpo.entry import run


def convert(cfg: DictConfig) -> None:
    """Converts, and prints one line: tensors, parameters, dtype, target."""
    print(instantiate(cfg.kind)(Path(cfg.source).expanduser(), Path(cfg.target).expanduser()))


if __name__ == "__main__":
    run(convert, "convert")
