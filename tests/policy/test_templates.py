from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

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


def test_the_reasoning_template_can_be_a_file(tmp_path: Path):
    file = tmp_path / "reasoning.txt"
    file.write_text('Draw "{prompt}" with {braces}.\n')
    templates = Templates("{prompt}", reasoning_file=str(file))
    assert templates.reasoning_text("a {cat}") == 'User: Draw "a {cat}" with {braces}.\n\nAssistant:'
    file.write_text("no placeholder")
    with pytest.raises(ValueError, match=r"reasoning.txt must hold the placeholder \{prompt\}"):
        Templates("{prompt}", reasoning_file=str(file))
    with pytest.raises(ValueError, match=r"reasoning_file=nowhere.txt cannot be read"):
        Templates("{prompt}", reasoning_file="nowhere.txt")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "conf/model/templates").glob("*.yaml")))
def test_shipped_templates_take_hostile_prompts(path: Path):
    templates = Templates(**OmegaConf.to_container(OmegaConf.load(path)))
    prompt = 'a {plan} "quoted" {prompt} {0}'
    assert prompt in templates.reasoning_text(prompt) and "{prompt}" not in templates.reasoning_text("a cat")
    assert templates.image_text(prompt, "a plan {prompt}") == f"User: {prompt}. a plan {{prompt}}\n\nAssistant:"
