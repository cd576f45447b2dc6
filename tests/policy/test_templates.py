from __future__ import annotations

import json
from pathlib import Path

import pytest

from egrpo.policy import Templates

SYSTEM = "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt."
REASONING = "Describe the picture that {prompt} should show, in one sentence."


def test_texts_are_the_published_ones(shared: Path):
    templates = Templates(REASONING, SYSTEM)
    for case in json.loads((shared / "conformance/janus_original_tiny/templates.json").read_text()):
        assert templates.reasoning_text(case["raw_prompt"]) == case["reasoning_prompt_text"]
        assert templates.image_text(case["raw_prompt"], case["completion_text"]) == case["image_prompt_text"]


def test_literal_texts():
    templates = Templates("Say {prompt}!", "Be kind.")
    assert templates.reasoning_text("a cat") == "Be kind.\n\nUser: Say a cat!\n\nAssistant:"
    assert templates.image_text("a cat", "It sits. ") == "User: a cat. It sits.\n\nAssistant:"
    assert templates.image_text("a cat") == "User: a cat\n\nAssistant:"
    assert Templates("{prompt}").reasoning_text("a cat") == "User: a cat\n\nAssistant:"


def test_braces_in_prompts_do_no_harm():
    templates = Templates("Say {prompt}!")
    prompt, plan = "a {plan} of {prompt} {0} {", r"\1 {prompt} {plan}"
    assert templates.image_text(prompt, plan) == f"User: {prompt}. {plan}\n\nAssistant:"
    assert templates.reasoning_text("{x}") == "User: Say {x}!\n\nAssistant:"


@pytest.mark.parametrize("fields", [{"reasoning": "Say it"}, {"reasoning": "{prompt}", "image": "{plan}"}])
def test_a_template_without_its_prompt_is_refused(fields: dict[str, str]):
    with pytest.raises(ValueError, match="must hold the placeholder"):
        Templates(**fields)
