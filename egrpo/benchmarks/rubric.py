"""What a judge is asked to score, how its answer is read, and how the parts make one number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from egrpo.base.errors import UserError

TAGS = "think|thinking|thought|reasoning"
THOUGHT = re.compile(rf"<({TAGS})>.*?</\1>", re.DOTALL | re.IGNORECASE)  # what reasoning models say to themselves
END_OF_THOUGHT = re.compile(rf"</({TAGS})>", re.IGNORECASE)  # alone where the server's template wrote the beginning
UNFINISHED = re.compile(rf"<({TAGS})>.*", re.DOTALL | re.IGNORECASE)
DECODER = json.JSONDecoder(strict=False)  # takes ends of lines within texts
PLACE = re.compile(r"\{prompt\}|\{explanation\}")
SHOWN = 120  # characters of an answer in a message


class BadAnswerError(UserError):
    """A judge's answer without usable scores."""


@dataclass(frozen=True)
class Rubric:
    """Scores of 0..highest, whole numbers, and their shares of the result.

    Args:
        instruction: The question's text, with `{prompt}` and `{explanation}`; it must ask for a JSON object with the
            names of `shares`.
        shares: Name of a score -> its share; shares sum to 1.
        highest: The best score.

    Raises:
        UserError: the shares do not sum to 1, or the text lacks a place for the prompt or a score's name.
    """

    instruction: str
    shares: Mapping[str, float]
    highest: int

    def __post_init__(self) -> None:
        if not math.isclose(sum(self.shares.values()), 1) or self.highest < 1:
            raise UserError(f"a rubric's shares must sum to 1 and highest be at least 1: {dict(self.shares)}")
        lacking = [text for text in ("{prompt}", *self.shares) if text not in self.instruction]
        if lacking:
            raise UserError(f"a rubric's instruction must hold {', '.join(lacking)}")

    def question(self, prompt: str, explanation: str) -> str:
        """The text for one image."""
        texts = {"{prompt}": prompt, "{explanation}": explanation}
        return PLACE.sub(lambda place: texts[place[0]], self.instruction)  # at once: a prompt may hold braces

    def read(self, answer: str) -> dict[str, float]:
        """The scores of an answer: those of the last JSON object in it that has any, itself or inside.

        Thoughts do not count, finished or not; numbers may be written as texts.

        Raises:
            BadAnswerError: there is none, it lacks a score, or a score is out of range.
        """
        rows = json_objects(spoken(answer))
        if not rows:
            raise BadAnswerError(f"the judge answered no JSON object: {shown(answer)}")
        row = next((found for row in reversed(rows) if (found := self._scored(row))), rows[-1])
        scores = {name: _number(row.get(name)) for name in self.shares}
        faults = [fault for name, score in scores.items() if (fault := self.fault(name, score))]
        if faults:
            raise BadAnswerError(f"the judge answered {shown(answer)}: {'; '.join(faults)}")
        return {name: float(score) for name, score in scores.items()}

    def _scored(self, row: object) -> dict[str, Any]:
        """The outermost object in `row` with a score's name; {} where there is none."""
        if isinstance(row, dict) and any(name in row for name in self.shares):
            return row
        inside = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
        return next((found for value in inside if (found := self._scored(value))), {})

    def fault(self, name: str, value: object) -> str:
        """What is wrong with a score; "" where it is a whole number in range."""
        if value is None:
            return f"{name} is missing"
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            return f"{name} is {value!r}, no whole number"
        return "" if 0 <= value <= self.highest else f"{name} is {value!r}, outside 0..{self.highest}"

    def value(self, scores: Mapping[str, float]) -> float:
        """Weighted mean of the scores in 0..1: WiScore, with the shares 0.7, 0.2 and 0.1 and highest 2."""
        return sum(share * scores[name] for name, share in self.shares.items()) / self.highest


def spoken(answer: str) -> str:
    """The answer without thoughts, finished or not."""
    text = END_OF_THOUGHT.split(THOUGHT.sub("", answer))[-1]
    return UNFINISHED.sub("", text)


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text that are not within another, in order; braces within texts do not count."""
    found, place = [], text.find("{")
    while place >= 0:
        try:
            row, end = DECODER.raw_decode(text, place)
            found.append(row)
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return found


def _number(value: object) -> Any:
    """A number for a text that is one; all else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def shown(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
