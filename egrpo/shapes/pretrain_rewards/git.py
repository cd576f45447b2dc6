"""GIT in small: a captioner that answers "red circle?" with yes or no.

From yes and no alone nothing is learned in hours. So every picture is also captioned with the exact plan of its scene,
and a throw-away head names what stands in every cell. All texts of a picture go through the decoder together, each
seeing the picture and itself only: the picture is paid for once.
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
from transformers import BertTokenizer, GitConfig, GitForCausalLM

from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, random_scene, write_plan
from egrpo.shapes.pretrain_rewards import examples
from egrpo.shapes.pretrain_rewards.clip import sum_entropies
from egrpo.shapes.pretrain_rewards.clip_targets import cell_targets
from egrpo.shapes.pretrain_rewards.optim import Optimizers
from egrpo.shapes.pretrain_rewards.phrases import Question, ask_some, asked_by
from egrpo.shapes.pretrain_rewards.store import save_clip_like
from egrpo.shapes.pretrain_rewards.words import bert_tokenizer
from egrpo.shapes.scene import Part, Thing

log = logging.getLogger(__name__)
IGNORE = -100


def build(tokenizer: BertTokenizer, *, vision: dict[str, Any], text: dict[str, Any]) -> GitForCausalLM:
    """An untrained GitForCausalLM for 48 x 48 pictures."""
    config = GitConfig(
        vision_config={"image_size": atlas.SIDE, "hidden_act": "gelu", **vision},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **text,
    )
    return GitForCausalLM(config)


def padded(rows: list[list[int]], value: int) -> Tensor:
    """[N, L] of rows filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


class Pictures:
    """Draws pictures with what they show. `malformed` pictures are decoded once and used again and again."""

    def __init__(self, seed: int, decoded: int, malformed: int):
        self.rng = np.random.default_rng(seed)
        self.painter = examples.Painter(seed, decoded)
        self.malformed = examples.draw_malformed(malformed, self.rng)

    def draw(self, count: int) -> tuple[np.ndarray, list[list[Thing]], int]:
        """Pictures [count, 48, 48, 3], what they show, and how many of them are well-formed; these come first.

        One in eight is malformed; of the others half are right for a prompt, half are random scenes.
        """
        rng, pool = self.rng, self.malformed
        picked = rng.choice(len(pool.records), count // 8)
        formed = count - len(picked)
        scenes = [random_scene(rng) if i % 2 else examples.draw_example(rng)[1] for i in range(formed)]
        pictures = self.painter.paint(np.stack([atlas.encode(scene, rng) for scene in scenes]), rng)
        things = scenes + [pool.things[i] for i in picked]
        return np.concatenate([pictures, pool.pictures[picked]]), things, formed


class Texts:
    """The texts of a batch of pictures as one row each: the caption, then questions, every one a segment of its own.

    Attributes: `ids`, `positions`, `segments`, all [B, T] (segments the same in every row), `captions` [B, T] the next
    token of a caption, `answers` [B, T] yes or no at a question's last token; -100 where nothing is learned.
    """

    def __init__(self, tokenizer: BertTokenizer, captions: list[str | None], questions: list[list[Question]]):
        cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        yes, no = (tokenizer.get_vocab()[word] for word in ("yes", "no"))
        tokens: Any = tokenizer([text or "" for text in captions], add_special_tokens=False).input_ids
        told = [[cls, *row, sep] for row in tokens]
        targets = [[*row[1:], IGNORE] if text is not None else [IGNORE] * len(row) for row, text in zip(told, captions)]
        flat = [question for row in questions for question in row]
        phrases: Any = tokenizer([q.text for q in flat], add_special_tokens=False).input_ids
        asked = [[cls, *row] for row in phrases]
        answers = [[IGNORE] * (len(row) - 1) + [yes if q.answer else no] for row, q in zip(asked, flat, strict=True)]
        each = len(questions[0])
        caption_ids, question_ids = padded(told, pad), padded(asked, pad)
        width, length = caption_ids.shape[1], question_ids.shape[1]
        rows = len(captions)
        blank = torch.full((rows, each * length), IGNORE)
        self.ids = torch.cat([caption_ids, question_ids.view(rows, -1)], 1)
        self.positions = torch.cat([torch.arange(width), torch.arange(length).repeat(each)]).expand(rows, -1)
        self.segments = torch.cat([torch.ones(width), 2 + torch.arange(each).repeat_interleave(length)]).long()
        self.captions = torch.cat([padded(targets, IGNORE), blank], 1)
        self.answers = torch.cat([torch.full_like(caption_ids, IGNORE), padded(answers, IGNORE).view(rows, -1)], 1)


def packed_mask(visual: int, segments: Tensor) -> Tensor:
    """[1, 1, V + T, V + T] additive mask: patches see patches, a token also its own segment up to itself."""
    all_segments = torch.cat([torch.zeros(visual, dtype=torch.long), segments])
    same = all_segments[:, None] == all_segments
    earlier = torch.ones_like(same).tril()
    seen = (all_segments == 0) | (same & earlier)
    seen &= (all_segments[:, None] > 0) | (all_segments == 0)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


def forward(model: GitForCausalLM, pixels: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
    """Patch features [B, V, vision width] (class token first) and hidden states of the texts [B, T, width].

    Equal to `GitForCausalLM` on each text alone.
    """
    patches = model.git.image_encoder(pixels).last_hidden_state
    visual = model.git.visual_projection(patches)
    words = model.git.embeddings(input_ids=texts.ids, position_ids=texts.positions)
    mask = packed_mask(visual.shape[1], texts.segments)
    hidden = model.git.encoder(torch.cat([visual, words], 1), attention_mask=mask).last_hidden_state
    return patches, hidden[:, visual.shape[1] :]


def losses(model: GitForCausalLM, cells: nn.Module, tokenizer: BertTokenizer, batch: tuple, texts: Texts):
    """Mean cross-entropies in nats: `caption` and `answer` a token, `cells` a choice."""
    pictures, things, formed = batch
    patches, hidden = forward(model, examples.to_tensor(pictures), texts)
    told, asked = texts.captions != IGNORE, texts.answers != IGNORE
    side = int((patches.shape[1] - 1) ** 0.5)
    wanted = cell_targets(things[:formed]).view(formed, 3, 3, 3)
    wanted = wanted.repeat_interleave(side // 3, 1).repeat_interleave(side // 3, 2).flatten(1, 2)
    return {
        "caption": F.cross_entropy(model.output(hidden[told]), texts.captions[told]),
        "answer": F.cross_entropy(model.output(hidden[asked]), texts.answers[asked]),
        "cells": sum_entropies(cells(patches[:formed, 1:]), wanted, (5, 6, 3)),
    }


def train(
    target: Path,
    *,
    seed: int,
    steps: int,
    pictures: int,
    questions: int,
    decoded: int,
    malformed: int,
    muon_lr: float,
    adamw_lr: float,
    vision: dict[str, Any],
    text: dict[str, Any],
    weights: dict[str, float],
) -> None:
    """Trains from nothing and writes model, tokenizer and image processor into `target`.

    Args:
        steps, pictures, questions: updates, pictures in each, questions about each picture.
        decoded: scenes from which `examples.Painter` learns how the decoder renders.
        malformed: size of the pool of malformed pictures.
        vision, text: the model's configuration.
        weights: of the losses in the sum (see `losses`).
    """
    torch.manual_seed(seed)
    tokenizer = bert_tokenizer()
    model = build(tokenizer, vision=vision, text=text).train()
    cells = nn.Linear(vision["hidden_size"], 5 + 6 + 3)
    optimizers = Optimizers([model, cells], steps=steps, muon_lr=muon_lr, adamw_lr=adamw_lr)
    source = Pictures(seed, decoded, malformed)
    start = time.monotonic()
    for step in range(steps):
        batch = source.draw(pictures)
        _, things, formed = batch
        captions = [write_plan(t, source.rng) if i < formed else None for i, t in enumerate(things)]
        texts = Texts(tokenizer, captions, [ask_some(t, questions, source.rng) for t in things])
        parts = losses(model, cells, tokenizer, batch, texts)
        optimizers.step(torch.stack([weights[name] * loss for name, loss in parts.items()]).sum())
        if step % 50 == 0:
            told = ", ".join(f"{name} {loss.item():.3f}" for name, loss in parts.items())
            log.info("git %d/%d: %s, %.0f s", step, steps, told, time.monotonic() - start)
    save_clip_like(model, tokenizer, target)


@torch.no_grad()
def probability_yes(
    model: GitForCausalLM, tokenizer: BertTokenizer, pictures: np.ndarray, texts: list[str], chunk: int = 128
) -> Tensor:
    """[N, 48, 48, 3] uint8 pictures and a question each -> [N] p(yes) / (p(yes) + p(no)), by the plain model."""
    yes, no = (tokenizer.get_vocab()[word] for word in ("yes", "no"))
    out = []
    for first in range(0, len(texts), chunk):
        rows: Any = tokenizer(texts[first : first + chunk], add_special_tokens=False).input_ids
        ids = padded([[tokenizer.cls_token_id, *row] for row in rows], tokenizer.pad_token_id)
        pixels = examples.to_tensor(pictures[first : first + chunk])
        logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[:, -ids.shape[1] :]
        last = logits[torch.arange(len(rows)), [len(row) for row in rows]]
        out.append((last[:, yes] - last[:, no]).sigmoid())
    return torch.cat(out)


def measure(path: Path, *, count: int = 320, seed: int = 1) -> dict[str, float]:
    """Share of questions answered rightly (yes above .5) about decoded pictures of `count` held-out prompts.

    `accuracy`: questions of all kinds, as many yes as no, a no one attribute off. `own`: the prompt's own phrases, on a
    right picture and on four with one mistake; mean of the shares among yes and among no. `malformed`: questions as in
    `accuracy` about malformed pictures, by what the oracle reads.
    """
    model = GitForCausalLM.from_pretrained(path, local_files_only=True).eval()
    tokenizer = BertTokenizer.from_pretrained(path, local_files_only=True)
    rng = np.random.default_rng(seed)
    scenes, codes, own = [], [], []
    for record in examples.held_out_records(count, seed):
        spec = spec_of(record)
        right = draw_scene(spec, rng)
        group = [right, *(examples.wrong_scene(right, spec, rng) for _ in range(4))]
        codes += [atlas.encode(scene, rng) for scene in group]
        codes.append(examples.malform(codes[-5], rng))
        scenes += [*group, []]
        parts = [_named(part, record.attr_nouns is not None) for part in spec.parts]
        own += [*(asked_by(record, parts, scene) for scene in group), []]
    pictures = examples.decode(examples.load_decoder(), np.stack(codes))
    is_malformed = np.arange(len(scenes)) % 6 == 5
    for i in np.flatnonzero(is_malformed):
        scenes[i] = examples.read(pictures[i : i + 1])[0]
    hard = [ask_some(scene, 4, rng) for scene in scenes]

    def right_ones(asked: list[list[Question]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each question: its picture, the truth, whether the model is right."""
        which = np.repeat(np.arange(len(asked)), [len(row) for row in asked])
        flat = [question for row in asked for question in row]
        found = probability_yes(model, tokenizer, pictures[which], [q.text for q in flat]).numpy() > 0.5
        truth = np.array([q.answer for q in flat])
        return which, truth, found == truth

    which, _, correct = right_ones(hard)
    _, truth, own_correct = right_ones(own)
    return {
        "accuracy": float(correct[~is_malformed[which]].mean()),
        "own": float(own_correct[truth].mean() + own_correct[~truth].mean()) / 2,
        "malformed": float(correct[is_malformed[which]].mean()),
    }


def _named(part: Part, attributes: bool) -> Part:
    """What the prompt's `attr_nouns`, or its `nouns`, say of a part."""
    return part if attributes else Part(shape=part.shape)
