"""From texts to token ids: begin-of-sequence in front, prompts that are too long cut at their end."""

from __future__ import annotations

import logging
from typing import Any

from egrpo.policy.templates import Templates

log = logging.getLogger(__name__)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, begin-of-sequence first, whether the tokenizer adds it or not."""
    ids = list(tokenizer(text)["input_ids"])
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def fit_prompt(tokenizer: Any, templates: Templates, prompt: str, limit: int | None) -> str:
    """The prompt, cut at its end so that its reasoning conversation has at most `limit` tokens; None = no limit.

    Raises:
        ValueError: the template alone is longer.
    """
    if limit is None:
        return prompt
    fitted, tokens = prompt, None
    while excess := max(0, len(encode(tokenizer, templates.reasoning_text(fitted))) - limit):
        tokens = list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if tokens is None else tokens
        if not tokens:
            raise ValueError(
                f"the reasoning template alone has more than the {limit} tokens of model.max_prompt_tokens: "
                "shorten it, or raise the limit"
            )
        tokens = tokens[:-excess]
        fitted = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    if tokens is not None:
        log.warning("the prompt %.60r... is cut to model.max_prompt_tokens=%d", prompt, limit)
    return fitted
