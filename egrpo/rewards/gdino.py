"""The object-detector reward: GroundingDINO finds a prompt's nouns, rules turn what it found into a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, GroundingDinoForObjectDetection

from egrpo.base.errors import UserError
from egrpo.base.tokens import holds_control_token
from egrpo.precision import float32_default
from egrpo.rewards.deformable import use_deformable_sums
from egrpo.rewards.detection_rules import (
    QUIRKS,
    RULES,
    Detection,
    detection_prompt,
    detection_score,
    has_rule,
    unjudged,
)
from egrpo.rewards.placement import Placement, check_batch_size, check_pairs, model_folder
from egrpo.rewards.preparation import Preparation, by_level, cut_as, levels_of, rows_by_size, to_device
from egrpo.rewards.pretrained import load_image_processor, load_model, load_tokenizer, unicode_text
from egrpo.types import PromptRecord

DELIMITERS = [101, 102, 1012, 1029]  # [CLS], [SEP], "." and "?": where the native model cuts a caption, in its code
TOO_FEW_POSITIONS = "selected index k out of range"  # how torch words it that the model has fewer than queries


@dataclass(frozen=True)
class Caption:
    """What the detector is asked for: P phrases in one text of L tokens."""

    names: list[str]  # P, what each phrase's detections are called
    ids: Tensor  # [L] int64, with [CLS] and [SEP]
    positive_map: Tensor  # [P, L] float32, each phrase's weights on its tokens, summing to 1


class GroundingDinoReward:
    """Scores images by the objects that GroundingDINO finds in them, 0..1 (spatial prompts: 0..0.9).

    A phrase's score at a query is the mean probability over the tokens of its first and of its last word; what exceeds
    `threshold` counts as detected. Source: the object-detector reward of T2I-R1 and EG-GRPO; see `detection_score` for
    the rules.

    Args:
        path: Directory with model, tokenizer and image processor, as `python -m egrpo.convert kind=gdino` writes it.
        device: `auto`, or a device as torch names it.
        dtype: Of the weights: "float32", "bfloat16" or "float16".
        batch_size: Images in one forward pass.
        offload: Between uses the model waits on the CPU.
        precision: Of products of float32 weights: "float32", "tf32", "bfloat16" or "float16"; see `Placement`.
        rules: "strict" (EG-GRPO: surplus objects cost) or "original" (T2I-R1).
        quirks: "fixed", or "reference" for the published code's faults.
        threshold: Phrase score above which a query is a detection, 0..1.

    Raises:
        FileNotFoundError: there is no model in `path`.
        UserError: unknown `rules`, `quirks`, `dtype` or `precision`, a `batch_size` below 1, another model, or a
            tokenizer with other delimiters.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        offload: bool = False,
        precision: str = "float32",
        rules: str = "strict",
        quirks: str = "fixed",
        threshold: float = 0.3,
    ):
        if rules not in RULES or quirks not in QUIRKS:
            raise UserError(f"rules={rules!r}, quirks={quirks!r}: rules are {RULES}, quirks {QUIRKS}")
        check_batch_size(batch_size)
        folder = model_folder(path, "gdino")
        model = load_model(GroundingDinoForObjectDetection, folder, "gdino", device, offload)
        self.tokenizer, self.processor = load_tokenizer(folder), load_image_processor(folder)
        ids = self.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
        if ids != DELIMITERS:
            raise UserError(f"the tokenizer in {folder} gives [CLS], [SEP], . and ? the ids {ids}, not {DELIMITERS}")
        self.max_tokens, self.queries = model.config.max_text_len, model.config.num_queries
        use_deformable_sums(model)
        self.placement = Placement(model, device, dtype, offload, precision)
        levels = levels_of(self.processor)
        self.preparation = Preparation(
            cut_as(self.processor), lambda pixels: by_level(pixels, levels), self.placement.device
        )
        self.batch_size, self.threshold = batch_size, threshold
        self.rules, self.quirks = rules, quirks

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images, of any sizes that are not too narrow for the model, and their N records -> [N] float32.

        Raises:
            UserError: a caption is too long, or a record lacks what its task type needs; the message names the prompt.
                An image is so narrow that, resized, it has fewer positions than the model has queries; the message
                names its size. There are not as many records as images.
        """
        scores = [
            detection_score(found, record, rules=self.rules, quirks=self.quirks)
            for found, record in zip(self.detect(images, records), records)
        ]
        return torch.tensor(scores, dtype=torch.float32)

    def applies(self, records: Sequence[PromptRecord]) -> Tensor:
        """[N] bool, False where the score is the same whatever the image."""
        return torch.tensor([has_rule(record) for record in records], dtype=torch.bool)

    def check(self, records: Sequence[PromptRecord]) -> list[str]:
        """Prompts that the detector cannot judge, a sentence for each fault: see `egrpo.rewards.base.Reward`."""
        found = []
        for record in records:
            try:
                self.caption(record)
            except UserError as error:
                found.append(str(error))
            found += unjudged(record)
        return found

    def detect(self, images: Sequence[Image.Image], records: Sequence[PromptRecord]) -> list[list[Detection]]:
        """What is found in each image, phrase by phrase in the order of the nouns; nothing for records without nouns.

        Raises:
            UserError: a caption is too long or an image too narrow for the model, or there are not as many records as
                images.
        """
        check_pairs(images, records)
        captions = [self.caption(record) for record in records]
        asked = [row for row, caption in enumerate(captions) if caption.names]
        # Only images of one size go together: padded pixels would change the detections.
        batches = rows_by_size(images, asked, self.batch_size)
        found: list[list[Detection]] = [[] for _ in records]
        if not batches:
            return found
        predictions = []  # stay on the device until all batches are on their way
        shown = [[images[row] for row in rows] for rows in batches]
        with self.placement(), self.preparation.ahead(shown) as prepared:
            for pictures, rows in zip(prepared, batches, strict=True):
                predictions.append(self.predict(pictures, [captions[row] for row in rows]))
        for rows, (logits, boxes) in zip(batches, predictions, strict=True):
            for row, row_logits, row_boxes in zip(rows, logits.cpu(), boxes.cpu(), strict=True):
                found[row] = self._above_threshold(captions[row], row_logits, row_boxes)
        return found

    def caption(self, record: PromptRecord) -> Caption:
        """The record's nouns as one caption, token by token.

        Raises:
            UserError: it has more tokens than the model reads, or a noun has none.
        """
        text, spans = detection_prompt([unicode_text(noun) for noun in record.nouns])
        encoding = self.tokenizer(text, split_special_tokens=holds_control_token(self.tokenizer, text))
        ids = torch.tensor(encoding["input_ids"])
        if len(ids) > self.max_tokens:
            raise UserError(
                f"the nouns of the prompt {record.prompt!r} make {len(ids)} tokens, but the detector reads at most "
                f"{self.max_tokens}: give the record fewer or shorter nouns"
            )
        names = [phrase_name(noun) if self.quirks == "reference" else noun for noun in record.nouns]
        weights = positive_map(encoding, spans)
        for row in (weights.sum(dim=1) == 0).nonzero().flatten().tolist():
            raise UserError(
                f"the noun {record.nouns[row]!r} of the prompt {record.prompt!r} has no characters that the detector "
                "reads, so it would never be found: write it in other letters, or leave it out"
            )
        return Caption(names, ids, weights)

    def predict(self, images: Sequence[Image.Image], captions: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """One forward pass over N images of equal size, to be called within `with self.placement():`.

        Captions are padded on the right to L tokens and masked, which leaves a row's values as they are.

        Returns:
            logits [N, Q queries, L], minus infinity at padding; boxes [N, Q, 4], [cx, cy, w, h] in 0..1; both float32,
            on the model's device.

        Raises:
            UserError: the images are too narrow for the model.
        """
        device = self.placement.device
        pixels = self.preparation(images).to(self.placement.dtype)
        ids = pad_sequence([c.ids for c in captions], batch_first=True, padding_value=self.tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(c.ids) for c in captions], batch_first=True)
        try:
            with float32_default():
                output = self.placement.model(
                    pixel_values=pixels, input_ids=to_device(ids, device), attention_mask=to_device(mask, device)
                )
        except RuntimeError as error:
            if TOO_FEW_POSITIONS not in str(error):
                raise
            (width, height), (high, wide) = images[0].size, pixels.shape[-2:]
            raise UserError(
                f"an image of {width} x {height} pixels is too narrow for the detector: resized to {wide} x {high} it "
                f"has fewer positions than the model's {self.queries} queries need; give "
                "images that are closer to a square"
            ) from error
        return output.logits[..., : ids.shape[1]].float(), output.pred_boxes.float()

    def _above_threshold(self, caption: Caption, logits: Tensor, boxes: Tensor) -> list[Detection]:
        """Detections of one image from its logits [Q, L or more] and boxes [Q, 4], phrase by phrase."""
        scores = phrase_scores(caption, logits)
        phrases, queries = (scores > self.threshold).nonzero(as_tuple=True)
        columns = phrases.tolist(), boxes[queries].tolist(), scores[phrases, queries].tolist()
        return [Detection(caption.names[phrase], box, score) for phrase, box, score in zip(*columns, strict=True)]


def phrase_scores(caption: Caption, logits: Tensor) -> Tensor:
    """Probability of each of P phrases at each of Q queries, [P, Q], from logits [Q, L or more]."""
    return caption.positive_map @ logits[:, : len(caption.ids)].sigmoid().T


def phrase_name(noun: str) -> str:
    """As the published code names a phrase: by its first and last word."""
    words = noun.split(" ")
    return noun if len(words) == 1 else f"{words[0]} {words[-1]}"


def positive_map(encoding: BatchEncoding, spans: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Weights of each of P phrases on the caption's L tokens, [P, L] float32, rows summing to 1 (less 1e-6).

    Args:
        encoding: The tokenized caption, with its map from characters to tokens.
        spans: For each phrase its [start, end) pairs of characters.
    """
    weights = torch.zeros(len(spans), len(encoding["input_ids"]), dtype=torch.float32)
    for row, pairs in enumerate(spans):
        for start, end in pairs:
            # Characters that the tokenizer drops, such as a lone accent, have no token.
            tokens = [t for t in map(encoding.char_to_token, range(start, end)) if t is not None]
            if tokens:
                weights[row, min(tokens) : max(tokens) + 1] = 1
    return weights / (weights.sum(dim=1, keepdim=True) + 1e-6)  # as published, to the last bit
