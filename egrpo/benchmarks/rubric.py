"""What a judge is asked to score, how its answer is read, and how the parts make one number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)  # what reasoning models say to themselves
OBJECT = re.compile(r"\{[^{}]*\}")
PLACE = re.compile(r"\{prompt\}|\{explanation\}")
SHOWN = 120  # characters of an answer in a message


class BadAnswerError(ValueError):
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
        ValueError: the shares do not sum to 1, or the text lacks a place for the prompt or a score's name.
    """

    instruction: str
    shares: Mapping[str, float]
    highest: int

    def __post_init__(self) -> None:
        if not math.isclose(sum(self.shares.values()), 1) or self.highest < 1:
            raise ValueError(f"a rubric's shares must sum to 1 and highest be at least 1: {dict(self.shares)}")
        lacking = [text for text in ("{prompt}", *self.shares) if text not in self.instruction]
        if lacking:
            raise ValueError(f"a rubric's instruction must hold {', '.join(lacking)}")

    def question(self, prompt: str, explanation: str) -> str:
        """The text for one image."""
        texts = {"{prompt}": prompt, "{explanation}": explanation}
        return PLACE.sub(lambda place: texts[place[0]], self.instruction)  # at once: a prompt may hold braces

    def read(self, answer: str) -> dict[str, float]:
        """The scores of an answer: those of the last JSON object in it.

        Raises:
            BadAnswerError: there is none, it lacks a score, or a score is out of range.
        """
        objects = OBJECT.findall(THOUGHT.sub("", answer))
        try:
            row = json.loads(objects[-1]) if objects else None
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise BadAnswerError(f"the judge answered no JSON object: {shown(answer)}")
        faults = [fault for name in self.shares if (fault := self.fault(name, row.get(name)))]
        if faults:
            raise BadAnswerError(f"the judge answered {shown(answer)}: {'; '.join(faults)}")
        return {name: float(row[name]) for name in self.shares}

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


def shown(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
