"""Where a result comes from: versions and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import egrpo
from egrpo.base.files import write_json as write_json

PACKAGES = ("torch", "lightning", "transformers", "deepspeed", "peft", "numpy")


def installed(package: str) -> str:
    """A package's version; a run may do without some, such as DeepSpeed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Of Python, this package and what decides numbers."""
    return {"python": platform.python_version(), "egrpo": egrpo.__version__} | {
        name: installed(name) for name in PACKAGES
    }


def provenance() -> dict[str, Any]:
    """What the code was when the run began: versions and commit."""
    return {"versions": versions(), "git_commit": git_commit()}


def git_commit() -> str | None:
    """Commit of the code that runs, "+changes" after it if files differ; None outside a git checkout."""
    here = Path(egrpo.__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:  # installed inside somebody else's checkout
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
