"""A published prompt file is fetched where it is missing, and taken only if it is the one that was published."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import httpx

from egrpo.data.reader import PromptFileError

TIMEOUT = 60.0  # seconds without an answer


def fetch_prompts(url: str, path: Path, sha256: str | None = None) -> None:
    """Downloads `url` to `path`, whole or not at all; an existing file is left as it is.

    Args:
        sha256: Hex digest that the file must have; None = any.

    Raises:
        PromptFileError: it cannot be fetched, or is another file. The message says what to do instead.
    """
    if path.exists():
        return
    by_hand = f"download it by hand and name it with data.train=FILE, or put it at {path}"
    try:
        answer = httpx.get(url, timeout=TIMEOUT, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        if path.exists():
            return  # another rank has fetched it meanwhile
        fault = f"is missing and could not be fetched from {url} ({type(error).__name__}: {error})"
        raise PromptFileError(path, [(0, fault, by_hand)]) from error
    found = hashlib.sha256(answer.content).hexdigest()
    if sha256 and found != sha256:
        fault = f"is missing, and what {url} gives is not the published file (SHA-256 {found}, wanted {sha256})"
        raise PromptFileError(path, [(0, fault, by_hand)])
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: the ranks of a run fetch at once, on one disk or on several.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(answer.content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
