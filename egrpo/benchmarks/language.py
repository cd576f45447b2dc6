"""What T2I-CompBench reads off a prompt: noun chunks, nouns, the prompt without adjectives.

The official evaluators use spaCy with its model en_core_web_sm. Where both are installed they are used here too;
otherwise rules of this project stand in, made for prompts of this benchmark's kind.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any, Protocol

from egrpo.base.errors import UserError
from egrpo.benchmarks.words import (
    ADJECTIVE_ENDINGS,
    ADJECTIVES,
    AFTER_NOUNS,
    AUXILIARIES,
    BOUNDARIES,
    DETERMINERS,
    NOUNS,
    PLURALS_IN_COMPOUNDS,
    PRONOUNS,
    VERBS,
)

SPACY_MODEL = "en_core_web_sm"
PARSERS = ("auto", "spacy", "rules")
TOKEN = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
OF_QUESTIONS = re.compile(r"[.!\"()*#:;~]")  # what BLIP's question cleaning drops
LONGEST_QUESTION = 50  # words
VERBAL = (",", "and", "or", "but", "while", "by", "then", "not")  # before "painting walls": somebody does it

log = logging.getLogger(__name__)


class Parser(Protocol):
    """Reads English prompts. `note` says in what it differs from the official one, "" = not at all."""

    note: str

    def noun_chunks(self, text: str) -> list[str]:
        """Noun phrases with their determiners, in order: "a red car on the road" -> ["a red car", "the road"]."""

    def nouns(self, text: str) -> list[str]:
        """Nouns, in order."""

    def without_adjectives(self, text: str) -> str:
        """The words but adjectives, with blanks between."""


def load_parser(kind: str = "auto") -> Parser:
    """`spacy`, `rules`, or `auto`: spaCy where it and its model are installed.

    Raises:
        UserError: unknown `kind`, or spaCy is asked for and not installed.
    """
    if kind not in PARSERS:
        raise UserError(f"parser={kind!r}: choose one of {', '.join(PARSERS)}")
    if kind == "rules":
        return RuleParser()
    try:
        return SpacyParser()
    except (ImportError, OSError) as error:
        if kind == "spacy":
            raise UserError(
                f"parser=spacy needs spaCy and its model {SPACY_MODEL} ({error}): pip install spacy, then "
                f"python -m spacy download {SPACY_MODEL}; or take parser=rules"
            ) from error
        log.warning("spaCy with %s is not installed; rules find the noun chunks, and the table says so", SPACY_MODEL)
        return RuleParser()


class SpacyParser:
    """spaCy, as the official evaluators use it. Raises an ImportError or OSError where it is not installed."""

    note = ""

    def __init__(self, model: str = SPACY_MODEL):
        import spacy

        self._parse = lru_cache(maxsize=1024)(spacy.load(model))  # every image of a prompt asks again

    def noun_chunks(self, text: str) -> list[str]:
        """See `Parser`."""
        return [chunk.text for chunk in self._parse(text).noun_chunks]

    def nouns(self, text: str) -> list[str]:
        """See `Parser`."""
        return self._of(text, lambda token: token.pos_ == "NOUN")

    def without_adjectives(self, text: str) -> str:
        """See `Parser`."""
        return " ".join(self._of(text, lambda token: token.pos_ != "ADJ"))

    def _of(self, text: str, wanted: Any) -> list[str]:
        return [token.text for token in self._parse(text) if wanted(token)]


class RuleParser:
    """Rules for descriptions of images: a chunk is what stands between boundaries, from determiner to last noun.

    Measured against spaCy: see docs/benchmarks.md.
    """

    note = "noun chunks by rules, officially by spaCy"

    def noun_chunks(self, text: str) -> list[str]:
        """See `Parser`."""
        tokens = list(TOKEN.finditer(text))
        return [text[tokens[first].start() : tokens[last].end()] for first, last in _Chunks(tokens).spans()]

    def nouns(self, text: str) -> list[str]:
        """The last word of each chunk that is no pronoun."""
        heads = [TOKEN.findall(chunk)[-1] for chunk in self.noun_chunks(text)]
        return [head for head in heads if _kind(head) != "pronoun"]

    def without_adjectives(self, text: str) -> str:
        """See `Parser`."""
        return " ".join(word for word in TOKEN.findall(text) if _kind(word) != "adjective")


class _Chunks:
    """Walks over tokens once; a chunk in progress is `first`..`last noun`."""

    def __init__(self, tokens: list[re.Match[str]]):
        self.kinds = [_kind(token[0]) for token in tokens]
        self.words = [token[0].lower() for token in tokens]
        self.found: list[tuple[int, int]] = []
        self.first: int | None = None
        self.last = 0  # word of the chunk in progress
        self.nouns: list[int] = []  # of the chunk in progress

    def spans(self) -> list[tuple[int, int]]:
        """First and last token of each chunk."""
        for place, kind in enumerate(self.kinds):
            self._step(place, kind)
        self._close()
        return self.found

    def _step(self, place: int, kind: str) -> None:
        if kind in ("determiner", "pronoun"):
            if len(self.nouns) > 1 and self.nouns[-1] == place - 1:
                self.nouns.pop()  # "the strainer brew the tea": two phrases touch where a verb was taken for a noun
            self._close()
            if kind == "pronoun":
                self.found.append((place, place))
            else:
                self.first = self.last = place
        elif kind == "boundary":
            if not self._goes_on(place):
                self._close()
        elif self._ends(place, kind):
            self._close()
        elif not self._is_outside(place, kind):
            self.first = place if self.first is None else self.first
            self.last = place
            if kind in ("noun", "verb") or (self.words[place] in AFTER_NOUNS and self.nouns):
                self.nouns.append(place)  # a verb too, where a noun must stand: "a catch"

    def _ends(self, place: int, kind: str) -> bool:
        """Whether a word cannot belong to the phrase in progress, which has its noun."""
        if not self.nouns:
            return self.words[place] in AUXILIARIES
        if kind == "adjective":
            return self._next(place) not in ("noun", "adjective") and self.words[place] not in AFTER_NOUNS
        last = self.words[self.nouns[-1]]
        plural = last.endswith("s") and not last.endswith(("ss", "'s", "’s")) and last not in PLURALS_IN_COMPOUNDS
        return kind != "noun" or (plural and not self.words[place].endswith("s"))  # "clouds drift"

    def _is_outside(self, place: int, kind: str) -> bool:
        """Whether a word before any phrase begins none."""
        if self.first is not None:
            return False
        if kind in ("verb", "adverb"):
            return True
        before = self.words[place - 1] if place else ""
        if self._next(place) in ("determiner", "pronoun") and (before == "to" or self.kinds[place - 1] == "verb"):
            return bool(place)  # "to find a way", "is painting a wall"
        verbal = bool(place) and (self.kinds[place - 1] != "boundary" or before in VERBAL)
        return kind == "participle" and (verbal or self._next(place) not in ("noun", "adjective"))

    def _goes_on(self, place: int) -> bool:
        """Whether "," or "and" at `place` stands between adjectives of one phrase."""
        if self.first is None or self.nouns or self.words[place] not in (",", "and"):
            return False
        if self.kinds[place - 1] not in ("adjective", "participle", "boundary"):
            return False
        after = place + 1
        if self._next(place) == "boundary" and self.words[after] == "and":  # ", and"
            after += 1
        if self._next(after - 1) == "noun":
            return self._next(after) in ("noun", "adjective")  # an adjective that the lists do not know
        return self._next(after - 1) in ("adjective", "adverb", "participle")

    def _next(self, place: int) -> str:
        return self.kinds[place + 1] if place + 1 < len(self.kinds) else ""

    def _close(self) -> None:
        if self.first is not None and not self.nouns:
            self.nouns = self._adjective_as_noun(self.first)
        if self.first is not None and self.nouns:
            self.found.append((self.first, self.nouns[-1]))
        self.first, self.nouns = None, []

    def _adjective_as_noun(self, first: int) -> list[int]:
        """Where a phrase without a noun ends: "the rough square", "a woman in orange"."""
        if self.kinds[first] == "determiner":
            return [self.last] if self.last > first else []
        return [self.last] if first and self.words[first - 1] == "in" else []


def _kind(word: str) -> str:
    """determiner, pronoun, boundary, verb, adjective, adverb, participle (-ing, -ed) or noun."""
    low = word.lower()
    if low in DETERMINERS:
        return "determiner"
    if low in PRONOUNS:
        return "pronoun"
    if low in NOUNS:
        return "noun"
    if low in BOUNDARIES or not any(character.isalnum() for character in low):
        return "boundary"
    if low in ADJECTIVES or low.endswith(ADJECTIVE_ENDINGS):
        return "adjective"
    if low in VERBS or low in AUXILIARIES:
        return "verb"
    if low.endswith("ly"):
        return "adverb"
    return "participle" if len(low) > 4 and low.endswith(("ing", "ed")) else "noun"


def question(chunk: str) -> str:
    """The question that BLIP is asked about a chunk, cleaned as the official evaluator does."""
    text = OF_QUESTIONS.sub("", f"{chunk}?".lower()).rstrip(" ")
    return " ".join(text.split(" ")[:LONGEST_QUESTION])
