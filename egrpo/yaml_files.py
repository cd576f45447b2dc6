"""Settings that a run, a sweep or an export left as a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from egrpo.base.errors import UserError
from egrpo.tensor_files import LFS


def read_yaml(path: Path) -> DictConfig:
    """A mapping of settings.

    Raises:
        UserError: the file is damaged, a pointer of git LFS, or holds something else.
    """
    try:
        if path.read_bytes().startswith(LFS):
            raise ValueError("it is a git LFS pointer; fetch the file itself with git lfs pull")
        found: Any = OmegaConf.load(path)
        if not isinstance(found, DictConfig) or [value for _, value in found.items_ex(resolve=False)] == [None]:
            raise ValueError("it holds a list or a text, not settings by name")
        return found
    except (OSError, YAMLError, ValueError, OmegaConfBaseException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # missing, or not ours to read: it says so itself
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as settings, so it is not what a run left there: {reason}") from error
