"""Lines of text files that users and other programs write."""

from __future__ import annotations

from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; a byte order mark is dropped, and so is an empty last line.

    Only ends of lines end a line. `str.splitlines` also cuts at characters that may stand within JSON and prose
    (U+0085, U+2028, U+2029, form feeds), which would shift all that follows by one.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read, or is not UTF-8.
    """
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # reading turns \r\n and \r into \n
    return lines[:-1] if lines[-1] == "" else lines
