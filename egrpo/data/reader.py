"""Reads prompt files (JSON Lines, or plain text); a faulty file is reported whole, not one line a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.data.records import faults_of, record_of
from egrpo.paths import resolve
from egrpo.types import PromptRecord

Problem = tuple[int, str, str]  # line number from 1 (0 = the file itself), what is wrong, how to mend it

LONGEST_LINE = 100_000  # bytes; models read some hundred tokens of a prompt
_SHOWN = 20
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class PromptFileError(UserError):
    """A prompt file that cannot be used. `problems` holds every fault as (line, fault, mend), `path` the file."""

    def __init__(self, path: str | Path, problems: list[Problem]) -> None:
        self.path = Path(path)
        self.problems = problems
        super().__init__(_report(path, problems))


def read_prompts(path: str | Path, *, defaults: Mapping[str, Any] | None = None) -> list[PromptRecord]:
    """The records of a file in file order; blank lines are skipped, a UTF-8 byte order mark is tolerated.

    Args:
        path: a file path, or `package:egrpo/...` for a file inside an installed package. A name that ends in `.txt` is
            plain text, a prompt a line, of the task type "non" and without nouns; all others are JSON Lines.
        defaults: what stands for keys that a line lacks, where a prompt alone is enough.

    Raises:
        PromptFileError: the file is missing, unreadable or empty, or has bad lines; all of them are named at once.
    """
    data = _read_bytes(path)
    parse = _parse_text if Path(path).suffix.lower() == ".txt" else _parse
    records: list[PromptRecord] = []
    problems: list[Problem] = []
    # Lines are split before decoding, so that one bad byte spoils one line only.
    for number, line in enumerate(data.removeprefix(_UTF8_BOM).split(b"\n"), start=1):
        if not line.strip():
            continue
        row, faults = parse(line) if len(line) <= LONGEST_LINE else _too_long(line)
        if defaults and isinstance(row, dict):
            row = {**defaults, **row}
        faults = faults or faults_of(row)
        if faults:
            problems += [(number, fault, mend) for fault, mend in faults]
        else:
            records.append(record_of(row))
    if problems:
        raise PromptFileError(path, problems)
    if not records:
        mend = "write one prompt a line" if parse is _parse_text else "write one JSON object a line"
        raise PromptFileError(path, [(0, "holds no prompts", mend)])
    return records


def _too_long(line: bytes) -> tuple[Any, list[tuple[str, str]]]:
    """Of a line that no prompt makes: a tokenizer takes minutes for megabytes of text."""
    fault = f"has {len(line):,} bytes, and {LONGEST_LINE:,} are the most"
    return None, [(fault, "write one prompt a line, and shorten it")]


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = resolve(path).read_bytes()
    except IsADirectoryError:
        raise PromptFileError(path, [(0, "is a folder", "name the .jsonl file inside it")]) from None
    except FileNotFoundError:
        here = f"seen from {Path.cwd()}" if not Path(path).is_absolute() else "check its spelling"
        raise PromptFileError(path, [(0, "does not exist", f"name an existing .jsonl file ({here})")]) from None
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
        raise PromptFileError(path, [(0, fault, "check its permissions and the disk")]) from error
    if data.startswith(_UTF16_BOMS):
        raise PromptFileError(path, [(0, "is UTF-16", "save it as UTF-8")])
    return data


def _parse_text(line: bytes) -> tuple[Any, list[tuple[str, str]]]:
    """The row of one line of plain text, and what keeps it from being read."""
    try:
        return {"prompt": line.decode("utf-8").strip(), "nouns": [], "task_type": "non"}, []
    except UnicodeDecodeError as error:
        return None, [_not_utf8(line, error)]


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> tuple[str, str]:
    fault = f"is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1} of the line"
    return fault, "save the file as UTF-8"


def _parse(line: bytes) -> tuple[Any, list[tuple[str, str]]]:
    """The JSON value of one line, and what keeps it from being read."""
    try:
        return json.loads(line.decode("utf-8")), []
    except UnicodeDecodeError as error:
        return None, [_not_utf8(line, error)]
    except json.JSONDecodeError as error:
        fault = f"is not JSON: {error.msg} at character {error.pos + 1}"
        return None, [(fault, "write one complete JSON object a line, without commas between lines or brackets around")]
    except (ValueError, RecursionError) as error:
        return None, [(f"is not usable JSON: {error}", "write one plain JSON object a line")]


def _report(path: str | Path, problems: list[Problem]) -> str:
    lines = len({line for line, _, _ in problems if line})
    if not lines:
        return "\n".join(f"prompt file {path} {fault}: {mend}." for _, fault, mend in problems)
    text = [f"prompt file {path} has {lines} bad line{'s' if lines > 1 else ''}:"]
    text += [f"  line {line}: {fault}; mend: {mend}" for line, fault, mend in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        text.append(f"  ... and {len(problems) - _SHOWN} more problems")
    return "\n".join(text)
