"""Questions to a judge: prompts near a given one, that ask for something else in one respect, and what each part says.

Many prompts for one picture make the judge read every word, and share the cost of looking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from egrpo.shapes.oracle import spec_of
from egrpo.shapes.prompts import FIGURES, NUMBERS, PLURALS, is_unseen_composition, split_of
from egrpo.shapes.scene import COLORS, LOCALITIES, SHAPES, TEXTURES, Part, Spec, Thing, judge
from egrpo.types import PromptRecord

COUNTS = {word: count for count, word in NUMBERS.items()}
NOUNS = {shape: shape for shape in SHAPES} | {plural: shape for shape, plural in PLURALS.items()}
ADJECTIVES = {word: shape for shape, word in FIGURES.items()}
VALUES = {"color": COLORS, "texture": TEXTURES, "shape": SHAPES, "count": tuple(NUMBERS)}


@dataclass(frozen=True)
class Word:
    """A word of a prompt that says an attribute (or the count) of a part."""

    index: int  # among the prompt's words
    part: int
    attribute: str
    noun: int  # index of the word that ends the part's phrase


def read_words(prompt: str) -> list[Word]:
    """The words that describe parts, in order; every part's phrase ends with its noun."""
    words = prompt.split(" ")
    found: list[Word] = []
    waiting: list[tuple[int, str]] = []
    part = 0
    for i, word in enumerate(words):
        figure = i + 1 < len(words) and words[i + 1] == "figure"
        if word in COLORS or word in TEXTURES or word in COUNTS:
            waiting.append((i, "color" if word in COLORS else "texture" if word in TEXTURES else "count"))
        elif (word in ADJECTIVES and figure) or word in NOUNS:
            waiting.append((i, "shape"))
            found += [Word(index, part, attribute, i + figure) for index, attribute in waiting]
            waiting, part = [], part + 1
    return found


def noun_ends(prompt: str) -> list[int]:
    """Character at which each part's phrase ends (exclusive), parts in order."""
    words = prompt.split(" ")
    nouns = sorted({word.noun for word in read_words(prompt)})
    return [len(" ".join(words[: noun + 1])) for noun in nouns]


def near(record: PromptRecord) -> list[list[PromptRecord]]:
    """All prompts one edit away, grouped by what is exchanged: a word of an attribute or number, the relation, the
    bond, or an attribute of the two parts with each other. Relation and bond are there three times, to be drawn more
    often: they are harder to read than words."""
    spec = spec_of(record)
    words = read_words(record.prompt)
    groups = []
    for word in words:
        now = getattr(spec.parts[word.part], word.attribute)
        groups.append([_say(record, word, value) for value in VALUES[word.attribute] if value != now])
    if spec.locality is not None:
        others = [text for text, way in LOCALITIES.items() if way != LOCALITIES[spec.locality]]
        groups += 3 * [[_exchange_locality(record, spec, other) for other in others]]
    if spec.bond is not None:
        groups += 3 * [[_exchange_bond(record, spec)]]
    for name in ("shape", "color", "texture"):
        pair = [word for word in words if word.attribute == name]
        first, second = (getattr(part, name) for part in (*spec.parts, *spec.parts)[:2])
        if len(pair) == 2 and first != second:
            groups.append([_say(_say(record, pair[0], second), pair[1], first)])
    return groups


def _say(record: PromptRecord, word: Word, value: Any) -> PromptRecord:
    """The prompt with `value` in that word's place; numbers take their noun along."""
    spec = spec_of(record)
    words = record.prompt.split(" ")
    part = replace(spec.parts[word.part], **{word.attribute: value})
    if word.attribute == "count":
        words[word.index] = NUMBERS[value]
        words[word.noun] = _noun(part)
    elif word.attribute == "shape":
        words[word.index] = FIGURES[value] if word.noun != word.index else _noun(part)
    else:
        words[word.index] = value
    parts = tuple(part if i == word.part else p for i, p in enumerate(spec.parts))
    return _with(record, " ".join(words), replace(spec, parts=parts))


def _noun(part: Part) -> str:
    assert part.shape is not None
    return PLURALS[part.shape] if part.count > 1 else part.shape


def _exchange_locality(record: PromptRecord, spec: Spec, other: str) -> PromptRecord:
    return _with(record, record.prompt.replace(f" {spec.locality} ", f" {other} "), replace(spec, locality=other))


def _exchange_bond(record: PromptRecord, spec: Spec) -> PromptRecord:
    assert spec.bond is not None
    attribute, kind = spec.bond
    head, tail = record.prompt.split(" of the same " if kind == "same" else " of different ")
    if kind == "same":
        return _with(record, f"{head} of different {tail}s", replace(spec, bond=(attribute, "different")))
    return _with(record, f"{head} of the same {tail.removesuffix('s')}", replace(spec, bond=(attribute, "same")))


def _with(record: PromptRecord, prompt: str, spec: Spec) -> PromptRecord:
    return replace(record, prompt=prompt, extra={**record.extra, "scene": spec.to_dict()})


def questions_for(
    record: PromptRecord, things: list[Thing], count: int, rng: np.random.Generator
) -> list[tuple[PromptRecord, bool]]:
    """Up to `count` prompts about a picture that shows `things`, and whether it is right for each.

    The prompt itself; if the picture is wrong for it, one a single edit away for which it is right, where there is one;
    and others one or two edits away. All may be trained on (see `split_of`).
    """
    groups = near(record)
    asked = {record.prompt: (record, judge(things, spec_of(record)) == 1)}
    if not asked[record.prompt][1]:
        options = [option for group in groups for option in group]
        for i in rng.permutation(len(options)):
            if _is_open(options[i]) and judge(things, spec_of(options[i])) == 1:
                asked[options[i].prompt] = (options[i], True)
                break
    for _ in range(3 * count):
        if len(asked) >= count:
            break
        other = _one_of(groups, rng)
        if rng.random() < 0.3:
            other = _one_of(near(other), rng)
        if other.prompt not in asked and _is_open(other):
            asked[other.prompt] = (other, judge(things, spec_of(other)) == 1)
    return list(asked.values())


def _one_of(groups: list[list[PromptRecord]], rng: np.random.Generator) -> PromptRecord:
    group = groups[rng.integers(len(groups))]
    return group[rng.integers(len(group))]


def _is_open(record: PromptRecord) -> bool:
    return split_of(record) == "open" and not is_unseen_composition(record)
