"""How often a stored judge is right, asked as the reward asks: one picture, one question, one answer token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from egrpo.shapes import atlas
from egrpo.shapes.oracle import score, spec_of
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain_rewards.examples import (
    decode,
    held_out_records,
    load_decoder,
    malform,
    to_tensor,
    wrong_scene,
)
from egrpo.shapes.pretrain_rewards.judge_text import HEAD, IMAGE_TOKENS, NO, YES, question
from egrpo.types import TASK_TYPES, PromptRecord

TEMPERATURE = 0.3  # of the published score


@torch.no_grad()
def scores(model: Any, tokenizer: Any, pictures: np.ndarray, prompts: list[str], chunk: int = 64) -> Tensor:
    """[N] score in 0..1 of each (picture, prompt): sigmoid((logit of yes - logit of no) / 0.3)."""
    head = HEAD.replace("<image>", "<image>" * IMAGE_TOKENS)
    yes, no = tokenizer.convert_tokens_to_ids([YES, NO])
    out = []
    for first in range(0, len(prompts), chunk):
        texts = [head + question(prompt) for prompt in prompts[first : first + chunk]]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        pixels = to_tensor(pictures[first : first + chunk])
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=pixels[:, None],  # one view
            image_sizes=torch.tensor([pixels.shape[-2:]] * len(texts)),
            batch_num_images=torch.tensor([max(2, len(texts))]),  # "several images": no picture is cut into views
        ).logits
        last = logits[torch.arange(len(texts)), batch.attention_mask.sum(1) - 1]
        out.append(((last[:, yes] - last[:, no]) / TEMPERATURE).sigmoid())
    return torch.cat(out)


def measure(path: Path, *, count: int = 600, seed: int = 1) -> dict[str, float]:
    """The stored judge on pictures of the VQ decoder for `count` held-out prompts: a right scene and a wrong one each.

    `accuracy`: share of answers that are right, and by task type; `pairs`: share of prompts for which the right scene
    scores higher; `malformed`: accuracy on malformed pictures, where the oracle says what is right; `mean_yes` and
    `mean_no`: mean score of right and of wrong scenes.
    """
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    rng = np.random.default_rng(seed)
    records = held_out_records(count, seed)
    vqmodel = load_decoder()
    right = [draw_scene(spec_of(record), rng) for record in records]
    wrong = [wrong_scene(things, spec_of(record), rng) for things, record in zip(right, records, strict=True)]
    prompts = [record.prompt for record in records]

    def ask(codes: list[np.ndarray]) -> tuple[np.ndarray, Tensor]:
        pictures = decode(vqmodel, np.stack(codes))
        return pictures, scores(model, tokenizer, pictures, prompts)

    yes = ask([atlas.encode(things, rng) for things in right])[1]
    no = ask([atlas.encode(things, rng) for things in wrong])[1]
    pictures, broken = ask([malform(atlas.encode(things, rng), rng) for things in right])
    truth = torch.tensor([score(picture, record) == 1 for picture, record in zip(pictures, records, strict=True)])
    correct = torch.stack([yes > 0.5, no <= 0.5]).float().mean(0)
    result = {
        "accuracy": correct.mean().item(),
        "accuracy_right": (yes > 0.5).float().mean().item(),
        "accuracy_wrong": (no <= 0.5).float().mean().item(),
        "pairs": (yes > no).float().mean().item(),
        "malformed": ((broken > 0.5) == truth).float().mean().item(),
        "mean_yes": yes.mean().item(),
        "mean_no": no.mean().item(),
    }
    return result | _by_task(records, correct)


def _by_task(records: list[PromptRecord], correct: Tensor) -> dict[str, float]:
    tasks = np.array([record.task_type for record in records])
    return {f"accuracy_{task}": correct[tasks == task].mean().item() for task in TASK_TYPES if (tasks == task).any()}
