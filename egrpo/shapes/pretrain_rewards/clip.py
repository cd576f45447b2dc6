"""HPS in small: a CLIP whose cosine of prompt and picture says how much of the prompt the picture fulfils.

Trained contrastively alone, a CLIP this small tells a prompt's picture from one with a single mistake hardly better
than chance. So it has dense targets beside the preferences: what stands in every cell, what a prompt asks for, which
relations a picture shows. Preferences, as HPS is trained on: within a prompt, the picture that fulfils more of it wins
(Bradley-Terry on the scaled cosine).
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from egrpo.shapes import atlas, oracle
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain_rewards import examples
from egrpo.shapes.pretrain_rewards.clip_targets import ASKED, SHOWN, asked_targets, cell_targets, shown_targets
from egrpo.shapes.pretrain_rewards.optim import Optimizers
from egrpo.shapes.pretrain_rewards.store import save_clip_like
from egrpo.shapes.pretrain_rewards.words import clip_tokenizer
from egrpo.shapes.scene import GRID, Thing, judge
from egrpo.types import TASK_TYPES, PromptRecord

log = logging.getLogger(__name__)
KINDS = 6  # pictures a prompt: two right, two with one mistake, one with two, and the last as `Groups.draw` says
# Relations are the hardest to tell: their prompts come more often.
PRACTICE = (*TASK_TYPES, "spatial", "spatial", "complex", "complex", "numeracy", "non")
BLOCK = 4  # prompts that are also judged on each other's pictures


def build(tokenizer: CLIPTokenizer, *, vision: dict[str, Any], text: dict[str, Any], projection_dim: int) -> CLIPModel:
    """An untrained CLIPModel for 48 x 48 pictures."""
    shared = {"hidden_act": "gelu", "projection_dim": projection_dim}
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,  # else CLIPModel reads the text's feature at a wrong position
            "pad_token_id": 0,
            **shared,
            **text,
        },
        vision_config={"image_size": atlas.SIDE, **shared, **vision},
        projection_dim=projection_dim,
    )
    return CLIPModel(config)


def text_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """[P, L] ids with start and end of text, padded on the right with 0."""
    rows = tokenizer(prompts).input_ids
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


class Groups:
    """Draws prompts with `KINDS` pictures each. `malformed` pictures are decoded once and used again and again."""

    def __init__(self, seed: int, decoded: int, malformed: int):
        self.rng = np.random.default_rng(seed)
        self.painter = examples.Painter(seed, decoded)
        self.malformed = examples.draw_malformed(malformed, self.rng)

    def draw(self, prompts: int) -> tuple[list[PromptRecord], list[list[Thing]], np.ndarray, np.ndarray]:
        """Records [P], what the P x KINDS pictures show, pictures [P x KINDS, 48, 48, 3], and which are well-formed.

        Last comes a malformed picture for one prompt in four; for the others the things asked for in other places where
        the prompt names a relation, which policies often get wrong, and else one more mistake.
        """
        rng, pool = self.rng, self.malformed
        picked = rng.choice(len(pool.records), prompts // 4, replace=len(pool.records) < prompts // 4)
        pairs = [(pool.records[i], pool.scenes[i]) for i in picked]
        tasks = rng.choice(PRACTICE, prompts - len(picked))
        pairs += [examples.draw_example(rng, str(task)) for task in tasks]
        scenes: list[list[Thing]] = []
        for record, scene in pairs:
            spec = spec_of(record)
            wrong = [examples.wrong_scene(scene, spec, rng) for _ in range(3)]
            twice = examples.wrong_scene(wrong[2], spec, rng)
            other = draw_scene(spec, rng)
            sixth = scattered(scene, rng) if spec.locality else examples.wrong_scene(other, spec, rng)
            scenes += [scene, other, wrong[0], wrong[1], twice, sixth]
        pictures = self.painter.paint(np.stack([atlas.encode(scene, rng) for scene in scenes]), rng)
        formed = np.ones(len(scenes), bool)
        for i, j in enumerate(picked):
            last = i * KINDS + KINDS - 1
            pictures[last], scenes[last], formed[last] = pool.pictures[j], pool.things[j], False
        return [record for record, _ in pairs], scenes, pictures, formed


def scattered(things: list[Thing], rng: np.random.Generator) -> list[Thing]:
    """The same things in random cells."""
    cells = rng.permutation(GRID * GRID)[: len(things)]
    return [replace(thing, x=cell % GRID + 0.5, y=cell // GRID + 0.5) for thing, cell in zip(things, cells)]


def preference_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """[P, M] scaled cosines and true scores -> mean over prompts of Bradley-Terry over all pairs that differ."""
    margin = scores[:, :, None] - scores[:, None]
    wins = (margin > 1e-6).float()
    losses = F.softplus(logits[:, None] - logits[:, :, None]) * wins
    return (losses.sum((1, 2)) / wins.sum((1, 2)).clamp(min=1)).mean()


def block_scores(records: list[PromptRecord], scenes: list[list[Thing]]) -> Tensor:
    """[P, BLOCK x KINDS] oracle scores of each prompt on the pictures of its block."""
    width = BLOCK * KINDS
    rows = []
    for i, record in enumerate(records):
        first = i // BLOCK * width
        spec = spec_of(record)
        rows.append([judge(scene, spec) for scene in scenes[first : first + width]])
    return torch.tensor(rows)


class Heads(nn.Module):
    """Throw-away heads for the dense targets."""

    def __init__(self, vision_width: int, projection_dim: int):
        super().__init__()
        self.cells = nn.Linear(vision_width, 5 + 6 + 3)
        self.asked = nn.Linear(projection_dim, sum(ASKED))
        self.shown = nn.Linear(projection_dim, SHOWN)


def losses(model: CLIPModel, heads: Heads, tokenizer: CLIPTokenizer, batch: tuple) -> dict[str, Tensor]:
    """Preferences within prompts, `own` pictures and those of the `block`; dense `cells`, `asked`, `shown`."""
    records, scenes, pictures, formed = batch
    seen = model.get_image_features(pixel_values=examples.to_tensor(pictures))
    read = model.get_text_features(input_ids=text_ids(tokenizer, [r.prompt for r in records]))
    scores = block_scores(records, scenes)
    images = F.normalize(seen.pooler_output, dim=-1).view(-1, BLOCK * KINDS, seen.pooler_output.shape[-1])
    texts = F.normalize(read.pooler_output, dim=-1).view(len(images), BLOCK, -1)
    logits = (model.logit_scale.exp() * texts @ images.mT).flatten(0, 1)
    own = torch.arange(len(records))[:, None] % BLOCK * KINDS + torch.arange(KINDS)

    well = torch.from_numpy(formed)
    cells = heads.cells(seen.last_hidden_state[well, 1:])
    wanted = cell_targets([scene for scene, ok in zip(scenes, formed) if ok])
    asked = asked_targets([spec_of(record) for record in records])
    return {
        "own": preference_loss(logits.gather(1, own), scores.gather(1, own)),
        "block": preference_loss(logits, scores),
        "cells": sum_entropies(cells, wanted, (5, 6, 3)),
        "asked": sum_entropies(heads.asked(read.pooler_output), asked, ASKED),
        "shown": F.binary_cross_entropy_with_logits(heads.shown(seen.pooler_output), shown_targets(scenes)) * 20,
    }


def sum_entropies(logits: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[..., sum(sizes)] logits of several choices and [..., len(sizes)] indices -> mean over the choices, in nats."""
    parts = logits.split(sizes, -1)
    entropies = [F.cross_entropy(part.flatten(0, -2), targets[..., i].flatten()) for i, part in enumerate(parts)]
    return torch.stack(entropies).mean()


def train(
    target: Path,
    *,
    seed: int,
    steps: int,
    prompts: int,
    decoded: int,
    malformed: int,
    muon_lr: float,
    adamw_lr: float,
    vision: dict[str, Any],
    text: dict[str, Any],
    projection_dim: int,
    weights: dict[str, float],
) -> None:
    """Trains from nothing and writes model, tokenizer and image processor into `target`.

    Args:
        steps, prompts: updates, and prompts in each (a multiple of 4).
        decoded: scenes from which `examples.Painter` learns how the decoder renders.
        malformed: size of the pool of malformed pictures.
        vision, text, projection_dim: the model's configuration.
        weights: of the losses in the sum (see `losses`).
    """
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    model = build(tokenizer, vision=vision, text=text, projection_dim=projection_dim).train()
    heads = Heads(vision["hidden_size"], projection_dim)
    optimizers = Optimizers([model, heads], steps=steps, muon_lr=muon_lr, adamw_lr=adamw_lr)
    groups = Groups(seed, decoded, malformed)
    start = time.monotonic()
    for step in range(steps):
        parts = losses(model, heads, tokenizer, groups.draw(prompts))
        optimizers.step(torch.stack([weights[name] * loss for name, loss in parts.items()]).sum())
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if step % 50 == 0:
            told = ", ".join(f"{name} {loss.item():.3f}" for name, loss in parts.items())
            log.info("hps %d/%d: %s, %.0f s", step, steps, told, time.monotonic() - start)
    save_clip_like(model, tokenizer, target)


@torch.no_grad()
def cosines(model: CLIPModel, tokenizer: CLIPTokenizer, prompts: list[str], pictures: np.ndarray) -> Tensor:
    """[P] prompts and [P, M, 48, 48, 3] uint8 pictures -> [P, M] cosines."""
    texts = F.normalize(model.get_text_features(input_ids=text_ids(tokenizer, prompts)).pooler_output, dim=-1)
    pixels = examples.to_tensor(pictures.reshape(-1, *pictures.shape[2:]))
    images = [model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(256)]
    return (F.normalize(torch.cat(images), dim=-1).view(*pictures.shape[:2], -1) @ texts[..., None]).squeeze(-1)


def measure(path: Path, *, count: int = 320, seed: int = 1) -> dict[str, float]:
    """What a trained directory knows of `count` held-out prompts, on decoded pictures.

    `pairs`: share of right pictures above one with a single mistake (4 a prompt). `malformed`: share of right pictures
    above a malformed one that the oracle counts as wrong. `spearman`: mean over prompts of the rank correlation of
    cosine and oracle score, over two right, four wrong, two doubly wrong, two malformed pictures.
    """
    model = CLIPModel.from_pretrained(path, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    rng = np.random.default_rng(seed)
    records = examples.held_out_records(count, seed)
    codes = []
    for record in records:
        spec = spec_of(record)
        right = [draw_scene(spec, rng) for _ in range(2)]
        wrong = [examples.wrong_scene(right[0], spec, rng) for _ in range(4)]
        twice = [examples.wrong_scene(scene, spec, rng) for scene in wrong[:2]]
        codes += [atlas.encode(scene, rng) for scene in right + wrong + twice]
        codes += [examples.malform(codes[-8], rng) for _ in range(2)]
    pictures = examples.decode(examples.load_decoder(), np.stack(codes)).reshape(count, 10, atlas.SIDE, atlas.SIDE, 3)
    truth = np.array([[oracle.score(p, r) for p in row] for row, r in zip(pictures, records, strict=True)])
    found = cosines(model, tokenizer, [r.prompt for r in records], pictures).numpy()
    wins = found[:, :1] > found
    ranks = [spearmanr(a, b).statistic for a, b in zip(found, truth, strict=True)]
    return {
        "pairs": float(wins[:, 2:6].mean()),
        "malformed": float(wins[:, 8:][truth[:, 8:] < 1].mean()),
        "spearman": float(np.mean(ranks)),
    }
