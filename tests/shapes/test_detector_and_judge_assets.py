"""What the shipped detector and judge promise, on a small sample of held-out prompts, and as the rewards use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from egrpo.paths import resolve
from egrpo.rewards.gdino import GroundingDinoReward
from egrpo.rewards.orm import ORMReward
from egrpo.shapes import atlas
from egrpo.shapes.atlas import place
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain_rewards import dino, judge
from egrpo.shapes.pretrain_rewards.examples import held_out_records, wrong_scene
from egrpo.shapes.scene import COLORS, SHAPES, TEXTURES, Thing
from egrpo.types import PromptRecord

ASSETS = Path(resolve("package:egrpo/shapes/assets/rewards"))
SEED = 1234  # none that any training or verdict uses


def picture(things: list[Thing]) -> Image.Image:
    return Image.fromarray(atlas.paint(atlas.encode(things, np.random.default_rng(0))))


@pytest.mark.parametrize(("name", "megabytes"), [("gdino", 3.0), ("orm", 3.0)])
def test_files_are_small(name, megabytes):
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) <= megabytes * 1e6


def test_detector_finds_what_phrases_name():
    found = dino.measure(ASSETS / "gdino", count=50, seed=SEED)
    assert found["recall"] >= 0.9
    assert found["precision"] >= 0.9
    assert found["noun_exact"] >= 0.9
    assert found["malformed_exact"] >= 0.75


@pytest.fixture(scope="module")
def detector() -> GroundingDinoReward:
    return GroundingDinoReward(ASSETS / "gdino")


def test_detector_knows_every_thing(detector):
    """One thing in a corner, and its name among names of what is not there: all 40 are found where they stand, and
    hardly ever is something else."""
    things = [place(shape, color, texture, 2) for shape in SHAPES for color in COLORS for texture in TEXTURES]
    absent = [[f"{color} {thing.shape}" for color in COLORS if color != thing.color][:2] for thing in things]
    named = [f"{thing.color} {thing.shape}" for thing in things]
    records = [PromptRecord("", [name, *others, "figure"]) for name, others in zip(named, absent, strict=True)]
    found = detector.detect([picture([thing]) for thing in things], records)
    surplus = 0
    for name, others, detections in zip(named, absent, found, strict=True):
        phrases = [detection.phrase for detection in detections]
        assert phrases.count(name) == phrases.count("figure") == 1
        surplus += sum(phrase in others for phrase in phrases)
        assert all(np.allclose(d.box[:2], [2.5 / 3, 0.5 / 3], atol=0.04) for d in detections)
    assert surplus <= 6  # of 80 absent names


def test_detector_rewards_what_was_asked_for(detector):
    """The published rules on spatial and numeracy prompts: right pictures above those with one mistake."""
    records = [r for r in held_out_records(300, SEED) if r.task_type == "numeracy"][:30]
    rng = np.random.default_rng(SEED)
    right = [draw_scene(spec_of(record), rng) for record in records]
    fewer = [things[1:] for things in right]
    scores = [detector([picture(things) for things in scenes], records) for scenes in (right, fewer)]
    assert (scores[0] > scores[1]).float().mean() >= 0.9
    assert scores[0].mean() >= 0.9


def test_judge_tells_right_from_wrong():
    found = judge.measure(ASSETS / "orm", count=120, seed=SEED)
    assert found["accuracy"] >= 0.87  # .90 is promised; one standard error is .02
    assert found["pairs"] >= 0.87
    assert found["malformed"] >= 0.85


def test_judge_rewards_right_pictures():
    reward = ORMReward(ASSETS / "orm")
    records = held_out_records(60, SEED)
    rng = np.random.default_rng(SEED)
    right = [draw_scene(spec_of(record), rng) for record in records]
    wrong = [wrong_scene(things, spec_of(record), rng) for things, record in zip(right, records, strict=True)]
    yes, no = (reward([picture(things) for things in scenes], records) for scenes in (right, wrong))
    assert yes.mean() >= 0.85
    assert no.mean() <= 0.3
    torch.testing.assert_close(reward([picture(right[0])], records[:1]), yes[:1], atol=1e-5, rtol=0)
