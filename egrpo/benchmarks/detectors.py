"""T2I-CompBench's spatial score and GenEval's verdict, by this project's GroundingDINO in place of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from egrpo.benchmarks.clip_score import CLIPScore, ColorNamer, cut
from egrpo.benchmarks.geneval_rules import COLORS, Found, is_right
from egrpo.benchmarks.language import load_parser
from egrpo.benchmarks.spatial_rules import Box, locality_of, spatial_score
from egrpo.rewards.detection_rules import NMS_IOU, corners, iou
from egrpo.rewards.gdino import GroundingDinoReward
from egrpo.rewards.placement import check_pairs
from egrpo.types import PromptRecord

MOST_OBJECTS = 16  # of a class, as GenEval


class Detector:
    """GroundingDINO asked for names: what it finds in pixels, surest first, without duplicates.

    Args:
        path: Directory of the model, as `python -m egrpo.convert kind=gdino` writes it.
        settings: Those of `GroundingDinoReward`: threshold, device, dtype, batch_size, offload.
    """

    def __init__(self, path: str | Path, **settings: Any):
        self.model = GroundingDinoReward(path, **settings)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[dict[str, list[Found]]]:
        """For each of N images, name -> what was found of it."""
        check_pairs(images, names)
        asked = [PromptRecord("", nouns=list(dict.fromkeys(wanted))) for wanted in names]
        out = []
        for image, record, detections in zip(images, asked, self.model.detect(images, asked), strict=True):
            width, height = image.size
            found: dict[str, list[Found]] = {name: [] for name in record.nouns}
            for d in sorted(detections, key=lambda d: -d.score):
                left, top, right, bottom = corners(d.box)
                box = (left * width, top * height, right * width, bottom * height)
                if all(iou(box, other.box) <= NMS_IOU for other in found[d.phrase]):
                    found[d.phrase].append(Found(box, d.score))
            out.append(found)
        return out


class SpatialScore:
    """T2I-CompBench's spatial score, 0..1: both objects' detection scores and how well their places fit the prompt.

    Args:
        path: Directory of the detector.
        parser: Of nouns: "spacy", "rules" or "auto".
        threshold: Score above which a detection counts.
        device, dtype, batch_size, offload: As `GroundingDinoReward` has them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        parser: str = "auto",
        threshold: float = 0.3,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        offload: bool = False,
    ):
        settings: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size, "offload": offload}
        self.detector, self.parser = Detector(path, threshold=threshold, **settings), load_parser(parser)
        self.note = "nouns by rules, officially by spaCy" if self.parser.note else ""

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records, of which the prompts are read -> [N] float32."""
        check_pairs(images, records)
        nouns = [self.parser.nouns(record.prompt) for record in records]
        pairs = [(found[0], found[-1]) if found else () for found in nouns]
        objects = self.detector(images, pairs)
        scores = []
        for image, record, pair, found in zip(images, records, pairs, objects, strict=True):
            boxes = [_surest(found, name, image.size) for name in pair]
            first, second = boxes if boxes else (None, None)
            scores.append(spatial_score(locality_of(record.prompt), first, second))
        return torch.tensor(scores, dtype=torch.float32)


class GenEvalVerdict:
    """GenEval's right (1) or wrong (0).

    Args:
        path: Directory of the detector.
        clip: Directory of the CLIP that names colours; officially openai/clip-vit-large-patch14.
        threshold: Score above which a detection counts, officially 0.3 of Mask2Former.
        counting_threshold: The same for the task `counting`, officially 0.9 of Mask2Former; GroundingDINO's scores are
            lower.
        device, dtype, batch_size, offload: Of both models.
    """

    note = ""

    def __init__(
        self,
        path: str | Path,
        *,
        clip: str | Path,
        threshold: float = 0.3,
        counting_threshold: float = 0.3,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        offload: bool = False,
    ):
        settings: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size, "offload": offload}
        self.detector = Detector(path, threshold=min(threshold, counting_threshold), **settings)
        self.colors = ColorNamer(CLIPScore(clip, **settings), COLORS)
        self.threshold, self.counting_threshold = threshold, counting_threshold

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records, which carry GenEval's `tag`, `include` and `exclude` -> [N] float32."""
        check_pairs(images, records)
        clauses = [[*r.extra["include"], *r.extra.get("exclude", [])] for r in records]
        objects = self.detector(images, [[clause["class"] for clause in row] for row in clauses])
        right = []
        for image, record, found in zip(images, records, objects, strict=True):
            least = self.counting_threshold if record.extra["tag"] == "counting" else self.threshold
            sure = {name: [f for f in row if f.score > least][:MOST_OBJECTS] for name, row in found.items()}

            def colors_of(row: Sequence[Found], name: str, image: Image.Image = image) -> Sequence[str]:
                return self.colors([cut(image, f.box) for f in row], name)

            right.append(is_right(sure, record.extra, colors_of))
        return torch.tensor(right, dtype=torch.float32)


def _surest(found: dict[str, list[Found]], name: str, size: tuple[int, int]) -> Box | None:
    if not found[name]:
        return None
    best = found[name][0]
    sides = (size[0], size[1]) * 2
    return Box(tuple(x / side for x, side in zip(best.box, sides, strict=True)), best.score)
