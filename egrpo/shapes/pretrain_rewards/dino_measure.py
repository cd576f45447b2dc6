"""How well a stored detector finds what phrases name, as the reward uses it: phrase scores, threshold, suppression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, GroundingDinoForObjectDetection

from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain_rewards.boxes import box_of, overlaps
from egrpo.shapes.pretrain_rewards.captions import draw_phrase, encode, shows, token_positions
from egrpo.shapes.pretrain_rewards.examples import (
    decode,
    held_out_records,
    load_decoder,
    malform,
    read,
    to_tensor,
    wrong_scene,
)
from egrpo.shapes.prompts import phrase
from egrpo.shapes.scene import Part, Thing
from egrpo.types import PromptRecord

THRESHOLD = 0.3  # of a phrase's score
SUPPRESSED = 0.5  # overlap above which the lower-scored of two boxes goes
FOUND = 0.5  # overlap with the truth from which a box counts as right


def keep(boxes: Tensor, scores: Tensor) -> list[int]:
    """Boxes [Q, 4] that non-maximum suppression keeps among those with scores [Q] above the threshold."""
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if scores[i] <= THRESHOLD:
            break
        if not kept or overlaps(boxes[i], boxes[kept])[0].max() < SUPPRESSED:
            kept.append(i)
    return kept


@torch.no_grad()
def detect(model: Any, tokenizer: Any, pixels: Tensor, phrases: list[list[str]]) -> list[list[Tensor]]:
    """Boxes [n, 4] found for each phrase of each picture [B, 3, 48, 48]; a phrase of three words or more is scored by
    its first and last, as in the published reward."""
    ids, mask = encode(tokenizer, phrases)
    output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    found = []
    for logits, boxes, row in zip(output.logits.sigmoid(), output.pred_boxes, phrases, strict=True):
        ends = [[where[0], where[-1]] if len(where) > 2 else where for where in token_positions(row)]
        scores = [logits[:, where].mean(-1) for where in ends]
        found.append([boxes[keep(boxes, score)] for score in scores])
    return found


def tally(found: Tensor, truth: list[tuple[float, float, float, float]]) -> tuple[int, int, int]:
    """(right, found, there): boxes that overlap a thing of their own enough, all boxes found, all things."""
    right, left = 0, torch.tensor(truth).view(-1, 4)
    for box in found:
        if len(left):
            iou = overlaps(box, left)[0]
            if iou.max() >= FOUND:
                right += 1
                left = left[torch.arange(len(left)) != iou.argmax()]
    return right, len(found), len(truth)


Sample = tuple[np.ndarray, list[Thing], bool, list[tuple[str, Part]]]  # codes, things, drawn or read, phrases


def clean_sample(record: PromptRecord, rng: np.random.Generator, attributed: bool) -> Sample:
    """A right or a wrong scene of the prompt, its phrases and one or two more, which are absent more often than not.

    `attributed`: all that the prompt says of a thing; otherwise the bare nouns that a record has.
    """
    spec = spec_of(record)
    things = draw_scene(spec, rng)
    if rng.random() < 0.5:
        things = wrong_scene(things, spec, rng)
    if attributed:
        said = [(phrase(part), Part(part.shape, part.color, part.texture)) for part in spec.parts]
        said += [draw_phrase(things, rng) for _ in range(rng.integers(1, 3))]
    else:
        said = [(noun, Part(None if noun == "figure" else noun)) for noun in record.nouns]
    return atlas.encode(things, rng), things, True, said


def count_all(model: Any, tokenizer: Any, pictures: np.ndarray, samples: list[Sample]) -> dict[str, float]:
    """`recall`, `precision` (absent phrases count as none there), and `exact`: share of phrases whose boxes are all
    right and complete."""
    counts = []
    for first in range(0, len(samples), 64):
        part = samples[first : first + 64]
        phrases = [[text for text, _ in said] for *_, said in part]
        found = detect(model, tokenizer, to_tensor(pictures[first : first + 64]), phrases)
        for (_, things, drawn, said), rows in zip(part, found, strict=True):
            for (_, meaning), boxes in zip(said, rows, strict=True):
                truth = [box_of(thing, drawn=drawn) for thing in things if shows(meaning, thing)]
                counts.append(tally(boxes, truth))
    right, claimed, there = np.array(counts).sum(0)
    exact = np.mean([a == b == c for a, b, c in counts])
    return {"recall": right / there, "precision": right / max(claimed, 1), "exact": float(exact)}


def measure(path: Path, *, count: int = 600, seed: int = 1) -> dict[str, float]:
    """The stored detector on pictures of the VQ decoder for `count` held-out prompts.

    `recall`, `precision`, `exact` (see `count_all`) for attributed phrases; `noun_...` for the records' bare nouns;
    `malformed_...` for attributed phrases on malformed pictures, whose truth is what the oracle reads.
    """
    model = GroundingDinoForObjectDetection.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    rng = np.random.default_rng(seed)
    records = held_out_records(count, seed)
    vqmodel = load_decoder()
    result: dict[str, float] = {}
    for kind in ("", "noun_", "malformed_"):
        samples = [clean_sample(record, rng, attributed=kind != "noun_") for record in records]
        if kind == "malformed_":
            samples = [(malform(codes, rng), things, False, said) for codes, things, _, said in samples]
        pictures = decode(vqmodel, np.stack([sample[0] for sample in samples]))
        if kind == "malformed_":
            truth = read(pictures)
            samples = [(s[0], things, False, s[3]) for s, things in zip(samples, truth, strict=True)]
        result |= {
            f"{kind}{key}": float(value) for key, value in count_all(model, tokenizer, pictures, samples).items()
        }
    return result
