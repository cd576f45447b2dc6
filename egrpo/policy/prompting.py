"""From texts to token ids: begin-of-sequence in front, prompts that are too long cut at their end."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from egrpo.base.errors import UserError
from egrpo.base.tokens import holds_control_token
from egrpo.policy.templates import Templates

log = logging.getLogger(__name__)
PLACES = "\ue000\ue001"  # private characters that stand for texts of the user in a template


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, begin-of-sequence first, whether the tokenizer adds it or not."""
    ids = list(tokenizer(text)["input_ids"])
    return _begun(tokenizer, ids)


def encode_filled(tokenizer: Any, template: Callable[..., str], *texts: str | None) -> list[int]:
    """Token ids of `template(*texts)`, begin-of-sequence first; no part of the texts becomes a control token.

    Where none of them spells one, the ids are those of `encode`. Else the texts are tokenized apart from the template,
    whose own control tokens stay what they are.
    """
    whole = template(*texts)
    if not any(holds_control_token(tokenizer, text) for text in texts if text):
        return encode(tokenizer, whole)
    if not holds_control_token(tokenizer, template(*[text and "" for text in texts])):
        return _begun(tokenizer, list(tokenizer(whole, split_special_tokens=True)["input_ids"]))
    values = dict(zip(PLACES, texts, strict=False))
    parts = re.split(f"([{PLACES}])", template(*[text and place for place, text in values.items()]))
    ids: list[int] = []
    for part in filter(None, parts):
        text = values.get(part, part) or ""
        ids += tokenizer(text, add_special_tokens=False, split_special_tokens=part in values)["input_ids"]
    return _begun(tokenizer, ids)


def _begun(tokenizer: Any, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def fit_prompt(tokenizer: Any, templates: Templates, prompt: str, limit: int | None) -> str:
    """The prompt, cut at its end so that its reasoning conversation has at most `limit` tokens; None = no limit.

    Raises:
        UserError: the template alone is longer.
    """
    if limit is None:
        return prompt
    fitted, tokens = prompt, None
    while excess := max(0, len(encode_filled(tokenizer, templates.reasoning_text, fitted)) - limit):
        if tokens is None:
            spelt = holds_control_token(tokenizer, prompt)
            tokens = list(tokenizer(prompt, add_special_tokens=False, split_special_tokens=spelt)["input_ids"])
        if not tokens:
            raise UserError(
                f"the reasoning template alone has more than the {limit} tokens of model.max_prompt_tokens: "
                "shorten it, or raise the limit"
            )
        tokens = tokens[:-excess]
        fitted = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    if tokens is not None:
        log.warning("the prompt %.60r... is cut to model.max_prompt_tokens=%d", prompt, limit)
    return fitted
