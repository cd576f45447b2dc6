"""Answers of a judge in files, so that nothing is paid for twice."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from egrpo.base.files import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a judge said of one image, and the tokens that it took."""

    content: str
    prompt_tokens: int
    completion_tokens: int


def kept_answer(path: Path) -> Answer | None:
    """A kept answer; None where there is none, or half of one."""
    try:
        return Answer(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be used (%s); it is asked again", path, error)
        return None


def keep_answer(path: Path, answer: Answer) -> None:
    """Writes an answer, whole or not at all."""
    write_whole(path, (json.dumps(asdict(answer), ensure_ascii=False) + "\n").encode())
