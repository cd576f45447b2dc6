"""What the campaign tries: one command line with the files around it, and how it must end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Content = str | bytes | Callable[[Path], Any]  # a file's content, or what makes it at its path


@dataclass(frozen=True)
class Case:
    """A hostile or odd input.

    Args:
        command: As in `python -m egrpo.COMMAND`.
        words: Its command line, seen from an empty folder of its own.
        says: Regular expressions, all of which must be found in what is said: the key or file that is wrong, and
            the remedy. Of a case that succeeds (`code` 0) they are looked for in all output.
        code: Expected exit code.
        files: Path in that folder -> content. None of these may be changed by the command.
        leaves: Paths or patterns that must be there afterwards.
        makes: Files among `files` that the command may rewrite, as it does its own.
        env: Environment variables; None removes one.
        signal: Sent to a process of its own, at `after` seconds.
        after: Seconds, see `signal`.
        limit: Seconds after which the case counts as hanging.
    """

    command: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 1
    files: dict[str, Content] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    env: dict[str, str | None] = field(default_factory=dict)
    signal: int | None = None
    after: float = 0.0
    limit: float = 60.0

    @property
    def name(self) -> str:
        """As it is printed and selected."""
        return f"{self.command} {' '.join(self.words)}"


def refused(command: str, *rows: tuple[str, str, str], **rest: Any) -> list[Case]:
    """Cases of one command, a row each: words separated by two blanks, what names the fault, what names the remedy."""
    return [
        Case(command, tuple(filter(None, words.split("  "))), (names, remedy), **rest) for words, names, remedy in rows
    ]
