"""A tiny GroundingDINO that finds "red circle . cross." in a picture, trained from nothing.

First the backbone alone learns to name the code of every patch, under a head that is thrown away: dense and cheap.
Then the whole network learns detection on captions that name present and absent things alike.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from egrpo.shapes import atlas
from egrpo.shapes.plans import random_scene
from egrpo.shapes.pretrain_rewards.captions import VOCABULARY, build_tokenizer, draw_phrase, encode, make_targets
from egrpo.shapes.pretrain_rewards.dino_loss import detection_loss
from egrpo.shapes.pretrain_rewards.dino_measure import measure
from egrpo.shapes.pretrain_rewards.examples import Painter, draw_example, malform, read, to_tensor
from egrpo.shapes.pretrain_rewards.store import save_half
from egrpo.shapes.scene import Thing

__all__ = ["measure", "train"]
log = logging.getLogger(__name__)
MALFORMED = 0.3  # share of pictures with mistakes of a policy
PHRASES = 4  # in a caption, at most
DRAWINGS = atlas.NUM_CODES // atlas.VARIANTS  # patches that differ by more than grain


def build_model(width: int, ffn: int, queries: int, backbone: dict[str, Any], text: dict[str, Any]) -> Any:
    """`GroundingDinoForObjectDetection` with random weights for 48 x 48 pictures."""
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": atlas.SIDE,
            "drop_path_rate": 0.0,
            "out_features": ["stage2", "stage3"],
            **backbone,
        },
        text_config={"model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": 256, **text},
        d_model=width,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        num_queries=queries,
        num_feature_levels=2,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=4,
        decoder_n_points=4,
        dropout=0.0,
        fusion_droppath=0.0,
        disable_custom_kernels=True,
    )
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        for layer in model.model.encoder.layers:  # 1e-4 suits pretrained backbones; here fusion must learn in minutes
            layer.fusion_layer.vision_param.fill_(0.1)
            layer.fusion_layer.text_param.fill_(0.1)
        # Scores are products of normalised features, of order sqrt(width): begin smaller, in the focal loss's range.
        model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after.weight.mul_(0.25)
    return model


def build_image_processor() -> GroundingDinoImageProcessorPil:
    size = {"shortest_edge": atlas.SIDE, "longest_edge": atlas.SIDE}
    return GroundingDinoImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class Scenes:
    """Draws pictures for detection: scenes of prompts, random ones, malformed ones."""

    def __init__(self, seed: int, pool: int):
        self.rng = np.random.default_rng(seed)
        self.painter = Painter(seed, pool)

    def draw(self, size: int) -> tuple[Tensor, Tensor, list[tuple[list[Thing], bool]]]:
        """Pixels [B, 3, 48, 48], codes [B, 36], and of each picture its things and whether they were drawn or read."""
        rng = self.rng
        scenes = [(draw_example(rng)[1] if rng.random() < 0.5 else random_scene(rng), True) for _ in range(size)]
        codes = np.stack([atlas.encode(things, rng) for things, _ in scenes])
        broken = np.flatnonzero(rng.random(size) < MALFORMED)
        for i in broken:
            codes[i] = malform(codes[i], rng)
        pictures = self.painter.paint(codes, rng)
        for i, things in zip(broken, read(pictures[broken]), strict=True):
            scenes[i] = (things, False)
        return to_tensor(pictures), torch.from_numpy(codes), scenes


def train_backbone(model: Any, scenes: Scenes, *, steps: int, batch_size: int, lr: float) -> None:
    """Trains the backbone in place to name the drawing of each patch from its second stage's features, and all four
    patches of a cell from its third stage's."""
    backbone = model.model.backbone.conv_encoder.model
    heads = nn.ModuleList([nn.Linear(backbone.channels[0], DRAWINGS), nn.Linear(backbone.channels[1], 4 * DRAWINGS)])
    optimizer = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 20, 1.02 - i / steps))
    start = time.monotonic()
    for step in range(steps):
        pixels, codes, _ = scenes.draw(batch_size)
        side = atlas.SIDE // atlas.PATCH
        drawings = (codes // atlas.VARIANTS).view(-1, side, side)
        cells = drawings.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)  # [B, 3, 3, 4]
        fine, coarse = (features.permute(0, 2, 3, 1) for features in backbone(pixels).feature_maps)
        named = heads[0](fine)
        whole = heads[1](coarse).unflatten(-1, (4, DRAWINGS))
        loss = F.cross_entropy(named.flatten(0, 2), drawings.flatten())
        loss = loss + F.cross_entropy(whole.flatten(0, 3), cells.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = (named.argmax(-1) == drawings)[drawings > 0].float().mean().item()
            seconds = time.monotonic() - start
            log.info("gdino backbone %d/%d: loss %.3f, named %.3f, %.0f s", step, steps, loss.item(), right, seconds)


def train_detector(
    model: Any, tokenizer: Any, scenes: Scenes, *, steps: int, batch_size: int, lr: float, alpha: float
) -> None:
    """Trains the whole network in place on captions of one to four phrases."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 50, 1.02 - i / steps))
    rng = scenes.rng
    start = time.monotonic()
    for step in range(steps):
        pixels, _, drawn = scenes.draw(batch_size)
        phrases = [[draw_phrase(things, rng) for _ in range(rng.integers(1, PHRASES + 1))] for things, _ in drawn]
        ids, mask = encode(tokenizer, [[text for text, _ in row] for row in phrases])
        output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
        targets = make_targets(drawn, phrases, ids.shape[1])
        loss, terms = detection_loss(model, output, targets, mask, alpha)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            told = ", ".join(f"{name} {term:.3f}" for name, term in terms.items())
            log.info("gdino %d/%d: %s, gradient %.2f, %.0f s", step, steps, told, norm, time.monotonic() - start)


def train(
    target: Path, *, seed: int, pool: int, model: dict[str, Any], backbone: dict[str, Any], detector: dict[str, Any]
) -> None:
    """Trains a detector from nothing and writes model, tokenizer and image processor into `target`.

    `pool`: see `Painter`. `model`: settings of `build_model`; `backbone` and `detector`: of the two stages.
    """
    torch.manual_seed(seed)
    network, tokenizer = build_model(**model), build_tokenizer()
    network.train()
    scenes = Scenes(seed, pool)
    train_backbone(network, scenes, **backbone)
    train_detector(network, tokenizer, scenes, **detector)
    network.eval()
    save_half(network, target)
    tokenizer.save_pretrained(target)
    build_image_processor().save_pretrained(target)
