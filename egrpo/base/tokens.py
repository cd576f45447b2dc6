"""Texts of users as tokens: what is spelt like a control token of a tokenizer is text, and controls nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def holds_control_token(tokenizer: Any, text: str) -> bool:
    """Whether the text spells a control token, such as <eos> or [SEP], which the tokenizer would take for the token.

    Such a text is to be tokenized with `split_special_tokens=True`. All others keep their ids that way or without, but
    for a single character that some vocabularies declare special ("!" pads in CLIP's): it is not asked about here.
    """
    low = text.lower()  # some tokenizers look for their tokens in lower case
    return any(token in low for token in _control_tokens(tokenizer))


def plain_ids(tokenizer: Any, texts: list[str], **settings: Any) -> list[list[int]]:
    """Token ids of each text, all of it read as plain text; `settings` are those of the tokenizer's call."""
    if not any(holds_control_token(tokenizer, text) for text in texts):
        return tokenizer(texts, **settings)["input_ids"]
    return [
        tokenizer(text, split_special_tokens=holds_control_token(tokenizer, text), **settings)["input_ids"]
        for text in texts
    ]


@lru_cache(maxsize=32)
def _control_tokens(tokenizer: Any) -> tuple[str, ...]:
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(token.lower() for token in tokens if len(token) > 1)
