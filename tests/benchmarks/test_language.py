"""What is read off prompts by rules, on prompts of T2I-CompBench's kinds; and the choice of a parser."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from egrpo.benchmarks.language import RuleParser, load_parser, question

CHUNKS = {
    "a green bench and a blue bowl": ["a green bench", "a blue bowl"],
    "rubber gloves and a fluffy teddy bear": ["rubber gloves", "a fluffy teddy bear"],
    "an oval rug and a square floor pillow": ["an oval rug", "a square floor pillow"],
    "a photo of a red bed and a blue traffic light": ["a photo", "a red bed", "a blue traffic light"],
    "a tall building and a short house": ["a tall building", "a short house"],
    "a brown cow and a red orange": ["a brown cow", "a red orange"],
    "The glass teapot and metallic strainer brew the wooden tea on the fabric coaster.": [
        *("The glass teapot", "metallic strainer", "the wooden tea", "the fabric coaster"),
    ],
    "The fluffy clouds float above the metallic skyscrapers and wooden houses.": [
        *("The fluffy clouds", "the metallic skyscrapers", "wooden houses"),
    ],
    "The bright, bold colors of the exotic birds were a feast for the eyes.": [
        *("The bright, bold colors", "the exotic birds", "a feast", "the eyes"),
    ],
    "The warmth gave a dazzling and hypnotic display.": ["The warmth", "a dazzling and hypnotic display"],
    "A person is holding a guitar and playing a song.": ["A person", "a guitar", "a song"],
    "A baker is kneading dough for fresh bread, enjoying the scent of yeast.": [
        *("A baker", "dough", "fresh bread", "the scent", "yeast"),
    ],
    "A woman in orange and a man looking at his cell phone while he runs.": [
        *("A woman", "orange", "a man", "his cell phone", "he"),
    ],
    "The cone was propped up against the rough square and the prism": ["The cone", "the rough square", "the prism"],
    "a mouse on the bottom of a painting": ["a mouse", "the bottom", "a painting"],
    "running quickly": [],
    "": [],
    "!?": [],
}


@pytest.mark.parametrize("prompt", CHUNKS)
def test_noun_chunks(prompt):
    assert RuleParser().noun_chunks(prompt) == CHUNKS[prompt]


def test_nouns_are_the_heads_of_chunks_but_pronouns():
    assert RuleParser().nouns("a girl on the left of a stop sign") == ["girl", "left", "sign"]
    assert RuleParser().nouns("he runs") == []


def test_adjectives_are_dropped():
    assert RuleParser().without_adjectives("The red cup is next to a big box.") == "The cup is next to a box ."


@pytest.mark.parametrize(
    "chunk, text",
    [
        ("A Red Cup", "a red cup?"),
        ("Mr. Smith's (old) hat!", "mr smith's old hat?"),
        ("x " * 60, " ".join(["x"] * 50)),
    ],
)
def test_questions_are_cleaned_as_blip_does(chunk, text):
    assert question(chunk) == text


def test_spacy_is_asked_for_by_name_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)  # as if it were not installed
    assert isinstance(load_parser("auto"), RuleParser) and load_parser("rules").note
    with pytest.raises(ValueError, match=r"parser=spacy needs spaCy and its model en_core_web_sm"):
        load_parser("spacy")
    with pytest.raises(ValueError, match="choose one of auto, spacy, rules"):
        load_parser("nltk")


def test_spacy_is_used_where_it_is_installed(monkeypatch):
    class Doc(list):
        noun_chunks = (SimpleNamespace(text="a cup"),)

    tokens = [("a", "DET"), ("red", "ADJ"), ("cup", "NOUN")]
    fake, loaded = ModuleType("spacy"), []

    def parse(text):
        return Doc(SimpleNamespace(text=word, pos_=tag) for word, tag in tokens)

    def load(name):
        loaded.append(name)
        return parse

    fake.load = load
    monkeypatch.setitem(sys.modules, "spacy", fake)
    parser = load_parser("auto")
    assert loaded == ["en_core_web_sm"] and parser.note == ""
    assert parser.noun_chunks("a red cup") == ["a cup"]
    assert parser.nouns("a red cup") == ["cup"] and parser.without_adjectives("a red cup") == "a cup"
