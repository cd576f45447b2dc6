"""Random reward models of the published shapes: what is made, and that the reward classes load it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import GroundingDinoImageProcessorPil

from egrpo.paths import config_dir
from egrpo.rewards import GITReward, GroundingDinoReward, HPSReward, ORMReward
from egrpo.types import PromptRecord
from experiments.scale import rewards as scale

CLASSES = {"hps": HPSReward, "git": GITReward, "gdino": GroundingDinoReward, "orm": ORMReward}
ROUNDED = {"hps": 986.1e6, "git": 394.9e6, "gdino": 172.3e6, "orm": 8.03e9}


@pytest.mark.parametrize("name", CLASSES)
def test_shapes_are_the_published_ones(name: str):
    model = scale.build(scale.KINDS[name], "meta")
    counted = scale.count(model)
    assert counted == pytest.approx(ROUNDED[name], rel=3e-4)
    plan = OmegaConf.load(Path(config_dir()) / "plan.yaml").published_rewards
    assert plan[f"egrpo.rewards.{CLASSES[name].__name__}"].parameters == pytest.approx(counted, rel=2e-3)
    stored = torch.float32 if name == "gdino" else torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {stored}


def shrunk(name: str):
    """The published configuration with narrow and few layers; image sizes and vocabularies stay."""
    config = scale.KINDS[name].config()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if name == "gdino":
        config.encoder_layers, config.decoder_layers, config.encoder_ffn_dim, config.decoder_ffn_dim = 1, 2, 64, 64
        for key, value in small.items():
            setattr(config.text_config, key, value)
        config.backbone_config.embed_dim, config.backbone_config.depths = 24, [1, 1, 1, 1]
        config.backbone_config.hidden_size, config.num_queries = 24 * 8, 50
        return config
    parts = [config.vision_config, config if name == "git" else config.text_config]
    for part in parts:
        for key, value in small.items():
            setattr(part, key, value)
    if name == "orm":
        config.text_config.num_key_value_heads = 1
        config.text_config.layer_types = config.text_config.layer_types[:1]
    return config


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_made_loads_as_a_reward(monkeypatch, tmp_path, name: str):
    config, kind = shrunk(name), scale.KINDS[name]
    if name == "gdino":  # a detector of 800 pixels takes a while
        small = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 128})
        kind = dataclasses.replace(kind, processor=lambda _: small)
    monkeypatch.setitem(scale.KINDS, name, dataclasses.replace(kind, config=lambda: config))
    made = scale.make_rewards(tmp_path, "cpu", rewards=[name])
    assert made[name]["bytes"] > 2 * made[name]["parameters"] and [p.name for p in tmp_path.iterdir()] == [name]
    images = [Image.new("RGB", (384, 384), colour) for colour in ("red", "white")]
    records = [PromptRecord("a red circle", task_type="color", nouns=["circle"])] * 2
    scores = CLASSES[name](tmp_path / name, dtype="float32")(images, records)
    assert scores.shape == (2,) and scores.isfinite().all()


def test_the_seed_decides_the_weights(monkeypatch, tmp_path):
    config = shrunk("hps")
    monkeypatch.setitem(scale.KINDS, "hps", dataclasses.replace(scale.KINDS["hps"], config=lambda: config))
    files = []
    for number, seed in enumerate([1, 1, 2]):
        scale.make_rewards(tmp_path / str(number), "cpu", seed, ["hps"])
        files.append((tmp_path / str(number) / "hps" / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
