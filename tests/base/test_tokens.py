"""Control tokens that a user's text spells stay text, for every tokenizer; all other texts keep their ids."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from egrpo.base.tokens import holds_control_token, plain_ids
from egrpo.paths import resolve

ASSETS = "package:egrpo/shapes/assets"
SPELT = {
    "janus": ["<eos>", "<pad>", "<begin_of_image>", "<image_placeholder>"],
    "rewards/git": ["[SEP]", "[MASK]"],
    "rewards/gdino": ["[SEP]", "[CLS]"],
    "rewards/hps": ["<|endoftext|>", "<|startoftext|>"],
    "rewards/orm": ["<|im_end|>", "<image>"],
}


@pytest.mark.parametrize("model", SPELT)
def test_no_text_becomes_a_control_token(model):
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"{ASSETS}/{model}"))
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and len(token.content) > 1}
    if tokenizer.unk_token_id != tokenizer.eos_token_id:  # CLIP has one for both
        control -= {tokenizer.unk_token_id}
    for spelt in SPELT[model]:
        text = f"a red {spelt} circle"
        assert holds_control_token(tokenizer, text)
        assert control & set(tokenizer(text, add_special_tokens=False)["input_ids"])
        hostile, plain = plain_ids(tokenizer, [text, "a red circle!"], add_special_tokens=False)
        assert not control & set(hostile)
        assert plain == tokenizer("a red circle!", add_special_tokens=False)["input_ids"]
    for text in ("a red circle!", "a < b > c", "[sic]"):
        assert plain_ids(tokenizer, [text]) == [tokenizer(text)["input_ids"]]
