"""The pretraining configuration, its tokenizer and a fresh model of reduced size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from egrpo.policy import Templates
from egrpo.shapes.pretrain.build import build_model, build_tokenizer

CONF = Path(__file__).parents[2] / "conf"
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_VQ = {"latent_channels": 32, "channel_multiplier": [1, 1, 1, 1]}


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """conf/pretrain.yaml, resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("pretrain", overrides=["target=unused"])
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


@pytest.fixture(scope="session")
def recipes() -> dict[str, Any]:
    """The networks of conf/pretrain_rewards.yaml."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("pretrain_rewards", overrides=["target=unused"])
    container = OmegaConf.to_container(cfg.networks, resolve=True)
    assert isinstance(container, dict)
    return {str(name): {k: v for k, v in recipe.items() if k[0] != "_"} for name, recipe in container.items()}


@pytest.fixture(scope="session")
def templates(settings: dict[str, Any]) -> Templates:
    return Templates(**settings["model"]["templates"])


@pytest.fixture(scope="session")
def tokenizer(settings: dict[str, Any], templates: Templates) -> Any:
    """The tokenizer that pretraining builds."""
    return build_tokenizer([templates.reasoning_text(""), templates.image_text("")], settings["vocab_size"])


@pytest.fixture
def small_model(settings: dict[str, Any], tokenizer: Any) -> Any:
    """A fresh model with the real codes and vocabulary, and smaller networks."""
    torch.manual_seed(0)
    return build_model(tokenizer, settings["text"] | SMALL_TEXT, settings["vq"] | SMALL_VQ)
