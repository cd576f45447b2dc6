"""From one line's JSON value to a PromptRecord: what may be wrong with it, and how to mend it.

Required keys: `prompt`, `task_type` and `nouns` (an empty list says that there is nothing to detect).
Optional keys: `attr_nouns`, `spatial_info`, `numeracy_info`; null counts as absent. The task types `spatial` and
`numeracy` need their own info; whether a reward can judge what it asks for is for the reward to say (`check` of
`egrpo.rewards.base.Reward`). Any other key goes to `extra`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from egrpo.types import TASK_TYPES, PromptRecord

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # all but tabs and ends of lines
LONGEST_PROMPT = 20_000  # characters; models read some hundred tokens of a prompt
SPATIAL_KEYS = ("obj1", "obj2", "locality")
# Those that the detector's rules judge (egrpo.rewards.detection_rules).
LOCALITIES = (
    *("on the right of", "right of", "on the left of", "left of", "on the bottom of", "below"),
    *("on the top of", "on top of", "above", "next to", "on side of", "near"),
)
_NEEDED_INFO = {"spatial": "spatial_info", "numeracy": "numeracy_info"}
_SCHEMA_KEYS = {"prompt", "nouns", "attr_nouns", "spatial_info", "numeracy_info", "task_type"}

Fault = tuple[str, str]  # what is wrong, how to mend it


def faults_of(row: Any) -> list[Fault]:
    """Every fault of one line's JSON value; an empty list means that `record_of` may be called."""
    if not isinstance(row, dict):
        return [(f"is {_kind(row)}, not an object", 'write {"prompt": ..., "nouns": [...], "task_type": ...}')]
    faults = [*_prompt_faults(row), *_task_faults(row)]
    faults += _list_faults(row, "nouns", required=True)
    faults += _list_faults(row, "attr_nouns", required=False)
    if row.get("spatial_info") is not None:
        faults += _spatial_faults(row["spatial_info"])
    if row.get("numeracy_info") is not None:
        faults += _numeracy_faults(row["numeracy_info"])
    return faults


def record_of(row: dict[str, Any]) -> PromptRecord:
    """The record of a faultless row."""
    extra = {key: value for key, value in row.items() if key not in _SCHEMA_KEYS}
    return PromptRecord(extra=extra, **{key: row[key] for key in _SCHEMA_KEYS if key in row})


def _prompt_faults(row: dict[str, Any]) -> Iterator[Fault]:
    if row.get("prompt") is None:
        yield 'has no "prompt"', 'add "prompt": "the text to draw"'
    elif not isinstance(row["prompt"], str):
        yield f'"prompt" is {_kind(row["prompt"])}, not a string', "put the text in quotes"
    elif not row["prompt"].strip():
        yield '"prompt" is empty', "write the text to draw, or remove the line"
    elif len(row["prompt"]) > LONGEST_PROMPT:
        yield f'"prompt" has {len(row["prompt"]):,} characters, and {LONGEST_PROMPT:,} are the most', "shorten it"
    elif not _is_text(row["prompt"]):
        yield '"prompt" holds half a surrogate pair', "write the character itself instead of \\ud..., or remove it"
    elif found := CONTROL.search(row["prompt"]):
        yield f'"prompt" holds the control character U+{ord(found[0]):04X}', "remove it"


def _task_faults(row: dict[str, Any]) -> Iterator[Fault]:
    task = row.get("task_type")
    valid = ", ".join(TASK_TYPES)
    if task is None:
        yield 'has no "task_type"', f"add one of {valid}"
    elif task not in TASK_TYPES:
        near = get_close_matches(task.lower(), TASK_TYPES, n=1) if isinstance(task, str) else []
        hint = f'did you mean "{near[0]}"? ' if near else ""
        yield f'"task_type" is {task!r}, which is unknown', f"{hint}valid are {valid}"
    elif task in _NEEDED_INFO and row.get(_NEEDED_INFO[task]) is None:
        key = _NEEDED_INFO[task]
        example = (
            '{"obj1": ..., "obj2": ..., "locality": ...}' if task == "spatial" else '[{"obj_name": ..., "num": 2}]'
        )
        yield f'"task_type" is "{task}", but there is no "{key}"', f'add "{key}": {example}, or change the task'


def _list_faults(row: dict[str, Any], key: str, *, required: bool) -> Iterator[Fault]:
    value = row.get(key)
    if value is None:
        if required:
            yield f'has no "{key}"', f'add "{key}": ["cat", ...], or [] when nothing is to be detected'
    elif not isinstance(value, list) or not all(_is_text(item) for item in value):
        yield f'"{key}" is not a list of non-empty strings', f'write "{key}": ["cat", "dog"]'


def _spatial_faults(info: Any) -> Iterator[Fault]:
    if not isinstance(info, dict):
        yield f'"spatial_info" is {_kind(info)}, not an object', "write its obj1, obj2 and locality"
        return
    for key in SPATIAL_KEYS:
        if not _is_text(info.get(key)):
            yield f'"spatial_info" has no string "{key}"', f'add "{key}": a non-empty string'


def _numeracy_faults(info: Any) -> Iterator[Fault]:
    if not isinstance(info, list) or not info:
        yield '"numeracy_info" is not a list with entries', 'write [{"obj_name": "cat", "num": 2}]'
        return
    for place, item in enumerate(info, start=1):
        entry = item if isinstance(item, dict) else {}
        if not _is_text(entry.get("obj_name")):
            yield f'entry {place} of "numeracy_info" has no string "obj_name"', 'add "obj_name": "cat"'
        number = entry.get("num")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            yield f'entry {place} of "numeracy_info" has no positive whole "num"', 'add "num": 1 or more, unquoted'


def _is_text(value: Any) -> bool:
    """A non-blank string that can be written as UTF-8 (JSON escapes can smuggle in half a surrogate pair)."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else True


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
