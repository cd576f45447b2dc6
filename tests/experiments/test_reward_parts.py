"""Where a reward's seconds go, and what precision changes: what is measured is what it is called."""

from __future__ import annotations

import pytest
import torch

from egrpo.paths import resolve
from egrpo.rewards import HPSReward
from egrpo.rewards.detection_rules import Detection
from egrpo.types import PromptRecord
from experiments.speed import precision
from experiments.speed.precision import Seen, box_distance, differences
from experiments.speed.reward_parts import print_parts, sampling_seconds
from experiments.speed.rewards import noise


def test_parts_are_measured_alone_and_the_reward_is_left_as_it_was(capsys):
    reward = HPSReward(resolve("package:egrpo/shapes/assets/rewards/hps"), batch_size=2)
    cut, passes = [], []
    plain = reward.preparation.cut
    reward.preparation.cut = lambda image: cut.append(1) or plain(image)
    reward.placement.model.vision_model.register_forward_pre_hook(lambda *_: passes.append(len(cut)))
    before, images = reward.preparation, noise(3, 48)
    found = print_parts({"hps": reward}, images, [PromptRecord("a circle")] * 3, repeats=1)
    assert set(found["hps"]) == {"prepare", "forward", "together"} and min(found["hps"].values()) > 0
    assert reward.preparation is before
    # Twice each: 6 cut without a pass; 3 more once for 4 passes; then 4 passes and 6 cut, and the ensemble's same.
    assert passes[:4] == [9] * 4 and passes[4:] == [11, 12, 14, 15, 17, 18, 20, 21]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["seconds", "reward", "hps", "all"]


def test_one_attention_is_timed_both_ways():
    times = sampling_seconds(torch.device("cpu"), batch=1, repeats=1, levels=[(4, 3), (2, 2)])
    assert set(times) == {"transformers", "ours"} and min(times.values()) > 0


def test_differences_are_counted():
    cat, same, moved = (
        Detection("cat", [0.5, 0.5, 0.2, 0.2], 0.9),
        Detection("dog", [0.1, 0.1, 0.1, 0.1], 0.4),
        Detection("dog", [0.1, 0.13, 0.1, 0.1], 0.4),
    )
    exact = Seen([torch.tensor([[0.9, 0.2]])], [[cat, same]], torch.tensor([[1.0], [0.5]]), 0.0)
    seen = Seen([torch.tensor([[0.85, 0.21]])], [[moved]], torch.tensor([[1.0], [0.25]]), 0.0)
    found = differences(seen, exact)
    assert found == pytest.approx(
        {"score": 0.05, "box": 0.03, "came or went": 1, "rewards changed": 1, "reward": 0.25}, abs=1e-6
    )
    assert set(differences(exact, exact).values()) == {0} and box_distance(cat, [moved]) == 0


def test_the_table_of_precisions(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["precision", "scenes=4", "precisions=[bfloat16]", "batch_size=2"])
    precision.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].split()[0] == "scenes" and "float32" in lines[2]
    exact = [float(part.split()[-1]) for part in lines[3].split("  ")[-1].split(", ")]
    assert 0 < exact[0] < 0.1
