"""The tiny Janus: tokenizer, processor and a freshly initialised model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, write_plan
from egrpo.shapes.prompts import draw_open

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
IMAGE_TOKENS = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}


def build_tokenizer(templates: list[str], vocab_size: int, num_texts: int = 4000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text encodes) trained on prompts, plans and the templates' own words."""
    rng = np.random.default_rng(0)
    texts = templates * 50
    for _ in range(num_texts):
        record = draw_open(rng)
        texts += [record.prompt, write_plan(draw_scene(spec_of(record), rng), rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, *IMAGE_TOKENS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=IMAGE_TOKENS,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> JanusProcessor:
    size = {"height": atlas.SIDE, "width": atlas.SIDE}
    images = JanusImageProcessorPil(size=size, min_size=atlas.SIDE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return JanusProcessor(images, tokenizer, num_image_tokens=atlas.TOKENS)


def build_model(tokenizer: PreTrainedTokenizerFast, text: dict[str, Any], vq: dict[str, Any]):
    """`JanusForConditionalGeneration` with random weights and the codebook of `codebook`."""
    width = text["hidden_size"]
    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
            **text,
        },
        vision_config={  # not used for drawing; there because every Janus can also see
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": atlas.SIDE,
            "patch_size": atlas.PATCH,
            "projection_dim": width,
            "depth": 2,
            "num_image_tokens": atlas.TOKENS,
        },
        vq_config={
            "num_embeddings": atlas.NUM_CODES,
            "projection_dim": width,
            "image_token_embed_dim": width,
            "num_hidden_layers": 2,
            **vq,
        },
        image_token_id=int(tokenizer.vocab[IMAGE_TOKENS["image_token"]]),
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.copy_(codebook(vq["embed_dim"]))
    return model


def codebook(width: int) -> Tensor:
    """[K, width] unit-norm: the whitened principal components of the patches.

    Unit norm because the native decode path L2-normalises the codebook and encode does not.
    """
    flat = torch.from_numpy(atlas.patches()).double().flatten(1) / 127.5 - 1
    flat = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    scaled = u[:, :width] * s[:width].sqrt()
    signs = scaled.gather(0, scaled.abs().argmax(0, keepdim=True)).sign()  # svd's signs are arbitrary
    return torch.nn.functional.normalize(scaled * signs, dim=-1).float()
