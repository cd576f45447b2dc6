"""The language model learns both tasks: plan for a prompt, and image tokens for "prompt. plan".

Two stages. The first trains on right examples until the model is competent. The second blurs it on examples of which a
share is deliberately wrong in one respect, so that what reinforcement learning finds is a model that can do the task
but does not always choose to.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egrpo.policy.templates import Templates
from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, spoil, write_plan
from egrpo.shapes.prompts import draw_open
from egrpo.shapes.scene import Spec, Thing, judge
from egrpo.types import TASK_TYPES

log = logging.getLogger(__name__)
IGNORE = -100
PRACTICE = (*TASK_TYPES, "spatial", "complex", "non")  # relations are the hardest to plan: they come twice as often


@dataclass(frozen=True)
class Batch:
    """Two padded batches, N plans and I <= N images; targets are -100 where nothing is learned."""

    text_ids: Tensor  # [N, L] reasoning prompt, plan, end of sequence
    text_targets: Tensor  # [N, L] next text token
    text_mask: Tensor  # [N, L] bool
    image_ids: Tensor  # [I, M] image prompt up to begin-of-image
    image_mask: Tensor  # [I, M] bool, left-padded
    codes: Tensor  # [I, 36]


class ExampleMaker:
    """Draws training examples: prompt, scene, plan, codes, with the asked share of mistakes.

    `spoiled_plans`: share of plans that describe a scene the prompt does not ask for. `spoiled_images`: share of images
    that show another scene than their plan. `unconditional`: share of image prompts whose text is all padding (for
    classifier-free guidance). `planless`: share of image prompts without a plan.
    """

    def __init__(self, tokenizer: Any, templates: Templates, *, seed: int, unconditional: float, planless: float):
        self.tokenizer = tokenizer
        self.templates = templates
        self.rng = np.random.default_rng(seed)
        self.unconditional = unconditional
        self.planless = planless

    def batch(self, size: int, spoiled_plans: float, spoiled_images: float, image_share: float = 1.0) -> Batch:
        """`size` plans to write, and images to draw for the first `image_share` of them."""
        rows = [self._example(spoiled_plans, spoiled_images) for _ in range(size)]
        reasoning = self.tokenizer([row[0] for row in rows]).input_ids
        plans = self.tokenizer([row[1] for row in rows], add_special_tokens=False).input_ids
        drawn = rows[: round(size * image_share)]
        images = self.tokenizer([row[2] for row in drawn]).input_ids
        begin = self.tokenizer.convert_tokens_to_ids(self.tokenizer.boi_token)
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        text = [r + p + [eos] for r, p in zip(reasoning, plans, strict=True)]
        targets = [[IGNORE] * (len(r) - 1) + p + [eos, IGNORE] for r, p in zip(reasoning, plans, strict=True)]
        blank = self.rng.random(len(drawn)) < self.unconditional
        images = [
            [ids[0], *([pad] * (len(ids) - 1) if empty else ids[1:]), begin]
            for ids, empty in zip(images, blank, strict=True)
        ]
        text_ids, text_mask = _pad(text, pad)
        text_targets, _ = _pad(targets, IGNORE)
        image_ids, image_mask = _pad(images, pad, left=True)
        codes = torch.from_numpy(np.stack([row[3] for row in drawn]))
        return Batch(text_ids, text_targets, text_mask, image_ids, image_mask, codes)

    def _example(self, spoiled_plans: float, spoiled_images: float) -> tuple[str, str, str, np.ndarray]:
        rng = self.rng
        record = draw_open(rng, PRACTICE[rng.integers(len(PRACTICE))])
        spec = spec_of(record)
        planned = draw_scene(spec, rng)
        if rng.random() < spoiled_plans:
            planned = spoil_until_wrong(planned, spec, rng)
        drawn = spoil_until_wrong(planned, spec, rng) if rng.random() < spoiled_images else planned
        plan = write_plan(planned, rng)
        shown = None if rng.random() < self.planless else plan
        image_text = self.templates.image_text(record.prompt, shown)
        return self.templates.reasoning_text(record.prompt), f" {plan}", image_text, atlas.encode(drawn, rng)


def spoil_until_wrong(things: list[Thing], spec: Spec, rng: np.random.Generator) -> list[Thing]:
    """The scene with one mistake that the oracle counts as one (some mistakes touch nothing that was asked for)."""
    while True:
        spoiled = spoil(things, rng)
        if judge(spoiled, spec) < 1:
            return spoiled


def _pad(rows: list[list[int]], value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), value)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = True
    return ids, mask


def losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of plan tokens and of image tokens, both in nats."""
    janus = model.model
    positions = (batch.text_mask.cumsum(-1) - 1).clamp(min=0)
    hidden = janus.language_model(
        input_ids=batch.text_ids, attention_mask=batch.text_mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    wanted = batch.text_targets != IGNORE
    text = F.cross_entropy(model.lm_head(hidden[wanted]), batch.text_targets[wanted])

    embeds = janus.language_model.get_input_embeddings()(batch.image_ids)
    drawn = janus.generation_aligner(janus.generation_embeddings(batch.codes[:, :-1]))
    mask = torch.cat([batch.image_mask, torch.ones_like(batch.codes[:, 1:], dtype=torch.bool)], 1)
    hidden = janus.language_model(
        inputs_embeds=torch.cat([embeds, drawn], 1),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    logits = janus.generation_head(hidden[:, batch.image_ids.shape[1] - 1 :])
    return text, F.cross_entropy(logits.flatten(0, 1), batch.codes.flatten())


def trained_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """All that draws and plans: language model, its head, and the image-token modules (not VQ and vision tower)."""
    names = ("model.language_model.", "lm_head.", "model.generation_")
    return [(name, p) for name, p in model.named_parameters() if name.startswith(names)]


def make_optimizers(model: Any, muon_lr: float, adamw_lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the language model's matrices, AdamW on embeddings, heads and norms."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in trained_parameters(model):
        is_matrix = parameter.ndim == 2 and "layers." in name
        (matrices if is_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_language(
    model: Any,
    maker: ExampleMaker,
    *,
    steps: int,
    batch_size: int,
    muon_lr: float,
    adamw_lr: float,
    image_share: float = 1.0,
    spoiled_plans: float = 0.0,
    spoiled_images: float = 0.0,
) -> None:
    """Trains both tasks in place, with a short warm-up and linear decay to 0."""
    optimizers = make_optimizers(model, muon_lr, adamw_lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1, (i + 1) / 20, 1 - i / steps)) for o in optimizers
    ]
    model.train()
    start = time.monotonic()
    for step in range(steps):
        text, image = losses(model, maker.batch(batch_size, spoiled_plans, spoiled_images, image_share))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (text + 2 * image).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 50 == 0:
            seconds = time.monotonic() - start
            log.info(
                "language %d/%d: text %.3f, image %.3f nats, %.0f s", step, steps, text.item(), image.item(), seconds
            )
    model.eval()
