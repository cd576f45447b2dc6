"""`python -m egrpo.convert kind=KIND source=PATH target=DIR`: an official checkpoint as a transformers directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from egrpo.base.errors import UserError
from egrpo.base.files import whole_folder
from egrpo.base.targets import MARK, claim_target
from egrpo.entry import run


def convert(cfg: DictConfig) -> None:
    """Converts, and prints one line: tensors, parameters, dtype, target."""
    source, target = Path(cfg.source).expanduser(), Path(cfg.target).expanduser()
    if not source.exists():
        raise UserError(f"source={source} does not exist: give the official file, or the folder that holds it")
    claim_target(target, "target", "convert")
    with whole_folder(target, replaces=MARK) as part:
        summary = instantiate(cfg.kind)(source, part)
    print(replace(summary, target=target))


if __name__ == "__main__":
    run(convert, "convert")
