"""Prompts that are too long: what is cut, and what stays."""

from __future__ import annotations

import logging

import pytest

from egrpo.policy import Templates
from egrpo.policy.prompting import encode, encode_filled, fit_prompt
from tests.policy.conftest import make_tokenizer

TEMPLATES = Templates("Say {prompt}!")  # a token a letter: "User: Say !\n\nAssistant:" has 23, and begin-of-sequence


def test_a_short_prompt_stays(caplog):
    assert fit_prompt(make_tokenizer(), TEMPLATES, "a cat", None) == "a cat"
    assert fit_prompt(make_tokenizer(), TEMPLATES, "a cat", 29) == "a cat"
    assert not caplog.records


def test_a_long_prompt_is_cut_at_its_end_and_the_template_stays(caplog):
    tokenizer = make_tokenizer()
    with caplog.at_level(logging.WARNING):
        fitted = fit_prompt(tokenizer, TEMPLATES, "a cat that sits", 29)
    assert fitted == "a cat" and "max_prompt_tokens=29" in caplog.text
    assert len(encode(tokenizer, TEMPLATES.reasoning_text(fitted))) == 29


def test_a_template_that_is_too_long_is_told():
    with pytest.raises(ValueError, match=r"template alone has more than the 5 tokens of model\.max_prompt_tokens"):
        fit_prompt(make_tokenizer(), TEMPLATES, "a cat", 5)


def test_the_policy_cuts_plan_and_image_prompts_alike(make_policy):
    policy = make_policy()
    long = "a very long prompt " * 30
    policy.max_prompt_tokens = len(policy.reasoning_ids("")) + 6
    assert len(policy.reasoning_ids(long)) <= policy.max_prompt_tokens
    assert policy.image_ids(long, "it sits") == policy.image_ids("a very", "it sits")


@pytest.mark.parametrize("token", ["<eos>", "<pad>", "<begin_of_image>", "<bos>"])
def test_a_prompt_spells_no_control_token(token, make_policy):
    policy = make_policy()
    control = set(policy.tokenizer.all_special_ids) - {policy.tokenizer.unk_token_id}
    plain, hostile = "a red cat", f"a red {token} cat"
    for ids in (
        policy.reasoning_ids(hostile),
        policy.image_ids(hostile, f"it {token} sits"),
        policy.image_ids(hostile),
    ):
        assert control & set(ids[1:]) == set() and ids[0] == policy.tokenizer.bos_token_id
    assert policy.reasoning_ids(plain) == encode(policy.tokenizer, policy.templates.reasoning_text(plain))
    assert policy.image_ids(plain, "it sits") == encode(policy.tokenizer, policy.templates.image_text(plain, "it sits"))
    policy.max_prompt_tokens = len(policy.reasoning_ids("")) + 8
    assert control & set(policy.reasoning_ids(hostile)[1:]) == set()


def test_a_templates_own_control_tokens_stay(caplog):
    tokenizer, templates = make_tokenizer(), Templates("Say {prompt}!<eos>", image="<eos>{prompt}, {plan}")
    eos = tokenizer.eos_token_id
    plain = encode_filled(tokenizer, templates.image_text, "a cat", "it sits")
    assert plain == encode(tokenizer, templates.image_text("a cat", "it sits")) and plain.count(eos) == 1
    hostile = encode_filled(tokenizer, templates.image_text, "a <eos>", "it <eos> sits")
    assert hostile.count(eos) == 1
    assert tokenizer.decode(hostile[1:]) == templates.image_text("a <eos>", "it <eos> sits")
    assert encode_filled(tokenizer, templates.image_text, "a <eos>", None).count(eos) == 0
