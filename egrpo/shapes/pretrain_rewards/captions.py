"""Captions for a grounded detector: phrases that a picture may or may not show, joined by " . ", and their tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertTokenizer

from egrpo.shapes.plans import cell_of
from egrpo.shapes.pretrain_rewards.boxes import box_of
from egrpo.shapes.pretrain_rewards.dino_loss import Targets
from egrpo.shapes.prompts import FIGURES, phrase
from egrpo.shapes.scene import COLORS, SHAPES, TEXTURES, Part, Thing

VALUES = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES}
# What a phrase names besides the shape, and how often; without a shape it says "figure".
KINDS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("shape",), 0.30),
    (("shape", "color"), 0.30),
    (("shape", "texture"), 0.12),
    (("shape", "color", "texture"), 0.16),
    ((), 0.06),
    (("color",), 0.04),
    (("texture",), 0.02),
)
ROUND = 0.15  # share of the phrases of a shape alone that say "round figure" instead of "circle"
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
VOCABULARY = 1100


def build_tokenizer() -> BertTokenizer:
    """WordPiece over the world's words, and letters for all others. Those ids that transformers' GroundingDINO has in
    its code are BERT's; unused entries fill the gaps."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper() and chr(code) not in BERT_IDS]
    words = [*SHAPES, *COLORS, *TEXTURES, *FIGURES.values(), "figure", "figures", *(f"{shape}s" for shape in SHAPES)]
    words += ["crosses", "a", "the", "and", "of", *letters, *(f"##{letter}" for letter in letters)]
    taken = {index: word for word, index in BERT_IDS.items()}
    free = iter(dict.fromkeys(word for word in words if word not in BERT_IDS))
    vocabulary = {}
    for index in range(VOCABULARY):
        word = taken.get(index) or (next(free, None) if index > BERT_IDS["[MASK]"] else None)
        vocabulary[word or f"[unused{index}]"] = index
    return BertTokenizer(vocab=vocabulary, do_lower_case=True)


def draw_phrase(things: list[Thing], rng: np.random.Generator) -> tuple[str, Part]:
    """A phrase and what it says: of a thing in the picture, of one that differs in one respect, or of any."""
    kind = KINDS[rng.choice(len(KINDS), p=[share for _, share in KINDS])][0]
    named = [thing for thing in things if thing.shape is not None]
    said = {name: str(rng.choice(VALUES[name])) for name in kind}
    if named and rng.random() < 0.75:
        seen = named[rng.integers(len(named))]
        changed = rng.choice(kind) if kind and rng.random() < 0.5 else None
        said = {name: said[name] if name == changed else getattr(seen, name) for name in kind}
    part = Part(said.get("shape"), said.get("color"), said.get("texture"))
    text = phrase(part)
    if kind == ("shape",) and rng.random() < ROUND:
        text = f"{FIGURES[said['shape']]} figure"
    return text, part


def caption_of(phrases: list[str]) -> str:
    """The detector's text: "red circle . cross."."""
    return " . ".join(phrases).lower() + "."


def token_positions(phrases: list[str]) -> list[list[int]]:
    """Positions of each phrase's tokens in its caption's ids, where every word is one token."""
    positions, cursor = [], 1  # [CLS] comes first
    for text in phrases:
        length = len(text.split())
        positions.append(list(range(cursor, cursor + length)))
        cursor += length + 1  # and a full stop
    return positions


def shows(part: Part, thing: Thing) -> bool:
    """Whether the phrase is true of the thing; of what has no shape, none is."""
    return thing.shape is not None and part.share_right(thing) == 1


def make_targets(scenes: list[tuple[list[Thing], bool]], phrases: list[list[tuple[str, Part]]], length: int) -> Targets:
    """Which things the captions name, where they stand, and at which of `length` tokens.

    `scenes`: things, and whether they were drawn (in cells) rather than read by the oracle.
    """
    rows: list[list[tuple[tuple[float, float, float, float], set[int]]]] = []
    for (things, drawn), said in zip(scenes, phrases, strict=True):
        positions = token_positions([text for text, _ in said])
        row = []
        for thing in sorted(things, key=cell_of):
            named = {p for (_, part), where in zip(said, positions, strict=True) if shows(part, thing) for p in where}
            if named:
                row.append((box_of(thing, drawn=drawn), named))
        rows.append(row)
    size = max(1, *map(len, rows))
    boxes = torch.full((len(rows), size, 4), 0.5)
    tokens = torch.zeros(len(rows), size, length)
    present = torch.zeros(len(rows), size, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, (box, named) in enumerate(row):
            boxes[i, j] = torch.tensor(box)
            tokens[i, j, sorted(named)] = 1
            present[i, j] = True
    return Targets(boxes, tokens, present)


def encode(tokenizer: Any, phrases: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Ids [B, L] and attention mask [B, L] bool of the captions."""
    batch = tokenizer([caption_of(row) for row in phrases], padding=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask.bool()
