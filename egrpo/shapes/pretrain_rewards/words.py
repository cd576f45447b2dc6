"""Small tokenizers in the layouts of CLIP and BERT: the world's words are one token each, other text in pieces."""

from __future__ import annotations

import json
import string
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer

from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, write_plan
from egrpo.shapes.prompts import draw_open

SUFFIX = "</w>"  # of a token that ends a word
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def world_words(texts: int = 3000) -> list[str]:
    """Words of prompts and plans without punctuation, as often as they occur."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(texts):
        record = draw_open(rng)
        lines += [record.prompt, write_plan(draw_scene(spec_of(record), rng), rng)]
    return " ".join(lines).replace(",", " ").replace(";", " ").replace(":", " ").split()


def clip_tokenizer(merges: int = 240) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's layout: bytes, bytes that end a word, merges, start and end of text with the highest
    ids (where several are padded, code of CLIP reads a text's feature at its highest id)."""
    letters = string.ascii_lowercase
    trained = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    size = 2 * len(letters) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix=SUFFIX, initial_alphabet=list(letters), show_progress=False
    )
    trained.train_from_iterator(world_words(), trainer)
    pairs: list[Any] = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + SUFFIX for letter in alphabet), *map("".join, pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=pairs, pad_token="!")  # "!" has id 0, with which CLIP pads


def bert_tokenizer() -> BertTokenizer:
    """WordPiece in BERT's layout: special tokens, punctuation, letters as beginnings and as continuations, words."""
    words = sorted({*world_words(), "yes", "no", "figure", "figures"})
    characters = string.ascii_lowercase + string.digits
    tokens = [*SPECIAL, *string.punctuation, *characters, *(f"##{c}" for c in characters), *words]
    return BertTokenizer(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))})
