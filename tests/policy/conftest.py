"""A tiny random Janus and its tokenizer, built offline in under a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from egrpo.policy import JanusPolicy, Templates

SPECIAL = ["<unk>", "<bos>", "<eos>", "<pad>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>"]
TEMPLATES = Templates(reasoning="Describe {prompt}.", system="Be brief.")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, vocabulary 300; adds no begin-of-sequence token itself."""
    letters = [chr(i) for i in range(32, 127)] + ["\n"]
    vocab = {token: i for i, token in enumerate(SPECIAL + letters)}
    vocab.update({f"<filler{i}>": i for i in range(len(vocab), 300)})
    core = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = Split("", "isolated")
    core.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_placeholder>",
        },
    )


def make_model(seed: int = 0) -> JanusForConditionalGeneration:
    """Hidden 64, 2 layers, 64 codes, 4 x 4 image tokens; weights large enough for lively logits."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    text = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        mlp_ratio=2.0,
        projection_dim=64,
        num_image_tokens=16,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=64,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=64,
        image_token_embed_dim=64,
    )
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=6, tie_word_embeddings=False
    )
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "vision_model" not in name and "vqmodel" not in name:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
        model.model.language_model.embed_tokens.weight.normal_()
        model.model.generation_embeddings.weight.normal_()
    return model.eval()


_MODEL = make_model()


def _make_policy(**settings: Any) -> JanusPolicy:
    """A fresh policy on a copy of the tiny model."""
    return JanusPolicy(
        copy.deepcopy(_MODEL), make_tokenizer(), TEMPLATES, **{"max_plan_tokens": 12, "chunk_size": 7, **settings}
    )


@pytest.fixture
def policy() -> JanusPolicy:
    return _make_policy()


@pytest.fixture
def make_policy() -> Callable[..., JanusPolicy]:
    """Policies on copies of one tiny model, equal but for the settings given."""
    return _make_policy


@pytest.fixture
def model() -> JanusForConditionalGeneration:
    return copy.deepcopy(_MODEL)
