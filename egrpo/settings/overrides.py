"""Writing values in the grammar of Hydra's overrides."""

from __future__ import annotations

import re
from typing import Any

PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
OTHER_TYPES = ("null", "true", "false", "nan", "inf")  # words that are no text, in any case


def override(key: str, value: Any) -> str:
    """`key=value`, which Hydra reads back as exactly this value; for a shell, quote it once more.

    Args:
        key: Dotted name, with its leading + or ~ if any.
        value: None, a number, a text, or lists and mappings of these. An interpolation in a text stays one.
    """
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in OTHER_TYPES:
        return text
    # Of backslashes, only those before a quote mean something, so only these are doubled.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"
