"""Prompts that are too long: what is cut, and what stays."""

from __future__ import annotations

import logging

import pytest

from egrpo.policy import Templates
from egrpo.policy.prompting import encode, fit_prompt
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
