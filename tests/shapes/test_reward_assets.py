"""The shipped CLIP (hps) and GIT (git) know the shapes world as their README says, on held-out prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, GitForCausalLM

from egrpo.paths import resolve
from egrpo.rewards.git import GITReward
from egrpo.rewards.hps import HPSReward
from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain_rewards import clip, examples, git
from egrpo.shapes.pretrain_rewards.phrases import is_shown
from egrpo.shapes.scene import Thing

ASSETS = Path(resolve("package:egrpo/shapes/assets/rewards"))
SEED = 4321  # none that any training or verdict uses


def test_pictures_that_fulfil_more_of_a_prompt_score_higher():
    """48 prompts, 192 pairs: a standard error is .03 at most."""
    measured = clip.measure(ASSETS / "hps", count=48, seed=SEED)
    assert measured["pairs"] >= 0.85
    assert measured["malformed"] >= 0.85
    assert measured["spearman"] >= 0.65


def test_questions_are_answered_rightly():
    """48 prompts, 960 questions about well-formed pictures and 192 about malformed ones."""
    measured = git.measure(ASSETS / "git", count=48, seed=SEED)
    assert measured["accuracy"] >= 0.9
    assert measured["own"] >= 0.9
    assert measured["malformed"] >= 0.8


def pictures(scenes: list[list[Thing]], rng: np.random.Generator) -> list[Image.Image]:
    return [Image.fromarray(atlas.paint(atlas.encode(scene, rng))) for scene in scenes]


def test_rewards_prefer_the_right_picture_as_the_shipped_networks_do():
    """Both reward classes read the networks as they were trained: same preprocessing, same positions."""
    rng = np.random.default_rng(SEED)
    records = [r for r in examples.held_out_records(200, SEED) if r.task_type in ("color", "texture", "complex")]
    right = [draw_scene(spec_of(record), rng) for record in records]
    wrong = [examples.wrong_scene(scene, spec_of(r), rng) for scene, r in zip(right, records, strict=True)]
    good, bad = pictures(right, rng), pictures(wrong, rng)
    hps = HPSReward(ASSETS / "hps")
    assert (hps(good, records) > hps(bad, records)).float().mean() >= 0.85

    # GIT is asked about things one by one: it cannot see a mistake of place or number.
    lacks = [
        row
        for row, (scene, record) in enumerate(zip(wrong, records, strict=True))
        if not all(is_shown(part, scene) for part in spec_of(record).parts)
    ]
    assert len(lacks) >= 20
    asked = [records[row] for row in lacks]
    answers = GITReward(ASSETS / "git")
    gain = answers([good[row] for row in lacks], asked) - answers([bad[row] for row in lacks], asked)
    assert (gain > 0.25).float().mean() >= 0.85


@pytest.mark.parametrize("name, kind", [("hps", CLIPModel), ("git", GitForCausalLM)])
def test_networks_are_small_and_load_in_single_precision(name, kind):
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) <= 4e6
    model = kind.from_pretrained(ASSETS / name, local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
