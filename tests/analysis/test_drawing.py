"""Units of work: entropies as in training, scores, and no dependence on how the work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from egrpo.analysis.drawing import Scorers
from egrpo.analysis.records import read_embeddings, read_records, read_tokens
from egrpo.analysis.work import STUDY_STEP
from egrpo.paths import config_dir
from egrpo.rewards import RewardEnsemble, WeightedReward
from egrpo.train import build_module
from egrpo.types import PromptRecord, Rollout
from tests.analysis.studies import draw, work


def trained_on(prompts: list[PromptRecord], folder: Path, *more: str) -> tuple[Any, Rollout]:
    """The rollout that a training step draws, had it the study's step."""
    overrides = ["+experiment=shapes_eg_grpo", "model.max_plan_tokens=6", "rollout.group_size=2", f"run_dir={folder}"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        module = build_module(compose("train", [*overrides, "logger=none", "rollout.cfg_weight=1.5", *more]))
    module.configure_model()
    return module, module.sample(prompts, STUDY_STEP)


@pytest.mark.parametrize("logps, name", [("conditional", "image_entropy"), ("guided", "guided_entropy")])
def test_entropies_are_those_of_training(tmp_path: Path, monkeypatch: Any, logps: str, name: str):
    sizes = ("plans_per_prompt=2", "images_per_plan=1", "num_prompts=2", "~settings.base")
    draw(tmp_path / "study", monkeypatch, "rollout.cfg_weight=1.5", *sizes)
    prompts = list(work(tmp_path / "study", *sizes).prompts)
    module, rollout = trained_on(prompts, tmp_path, f"objective.logps={logps}")
    with torch.no_grad():
        scored = module.policy(rollout)
    for index in range(2):
        rows = slice(2 * index, 2 * index + 2)
        table, part = read_tokens(tmp_path / "study", "base_cot", index), rollout[rows]
        assert np.array_equal(table.codes, part.image.tokens.numpy())
        image = part.sampled.is_image
        for told in (part.sampled.entropy, scored.entropy[rows]):  # as drawn, and as the loss's forward pass has them
            np.testing.assert_allclose(getattr(table, name), told[image].view(2, -1), atol=1e-5)
            for own, mask, entropy in zip(table.text_entropy, part.sampled.mask & ~image, told, strict=True):
                np.testing.assert_allclose(own, entropy[mask], atol=1e-5)


def test_a_row_does_not_depend_on_the_batch(study: Path, tmp_path: Path, monkeypatch: Any):
    draw(tmp_path, monkeypatch, "rollout.cfg_weight=1.5", "rollout.batch_size=3")
    pd.testing.assert_frame_equal(read_records(study), read_records(tmp_path), atol=1e-6, rtol=0)
    for index in range(3):
        for setting in ("base", "base_cot"):
            one, other = (read_tokens(folder, setting, index) for folder in (study, tmp_path))
            assert np.array_equal(one.codes, other.codes) and one.plan_texts == other.plan_texts
    for path in (study / "images").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / path.relative_to(study)).read_bytes()


class Spot:
    """Knows nothing of prompts without nouns; embeds an image by its mean colour."""

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> torch.Tensor:
        return torch.arange(len(images), dtype=torch.float32)

    def applies(self, records: list[PromptRecord]) -> list[bool]:
        return [bool(record.nouns) for record in records]

    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor(np.stack([np.asarray(image).mean((0, 1)) for image in images]))


def test_what_says_nothing_about_a_prompt_has_no_value_but_counts_as_in_training():
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    scorers = Scorers(RewardEnsemble({"spot": WeightedReward(Spot(), weight=2.0)}), {"judge": Spot()})
    told = scorers.columns(images, PromptRecord("a cat", nouns=["cat"]))
    assert [row["reward/spot"] for row in told] == [0.0, 1.0] == [row["judge/judge"] for row in told]
    mute = scorers.columns(images, PromptRecord("blue"))
    assert all(np.isnan(row["reward/spot"]) for row in mute) and [row["reward"] for row in mute] == [0.0, 2.0]
    assert np.allclose(scorers.embeddings(images), [[255, 0, 0], [0, 0, 255]])


def test_embeddings_are_in_the_order_of_the_table(tmp_path: Path, monkeypatch: Any):
    spot = "{_target_: egrpo.rewards.WeightedReward, reward: {_target_: tests.analysis.test_drawing.Spot}}"
    draw(tmp_path, monkeypatch, f"+reward.spot={spot}", "num_prompts=2")
    records = read_records(tmp_path)
    expected = [np.asarray(Image.open(tmp_path / file)).mean((0, 1)) for file in records.file]
    np.testing.assert_allclose(read_embeddings(tmp_path, records), expected, atol=1e-4)
