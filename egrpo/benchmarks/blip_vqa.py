"""BLIP-VQA: does the image show every noun phrase of its prompt? (T2I-CompBench, color, shape and texture.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForQuestionAnswering

from egrpo.base.errors import UserError
from egrpo.base.tokens import plain_ids
from egrpo.benchmarks.language import Parser, load_parser, question
from egrpo.paths import resolve
from egrpo.rewards.placement import Placement, check_batch_size, check_pairs
from egrpo.rewards.pretrained import load_image_processor, load_model, load_tokenizer
from egrpo.types import PromptRecord

LEFT_OUT = ("top", "the side", "the left", "the right")  # chunks that name a place, about which it asks nothing
MOST_CHUNKS = 8  # noun chunks that the official evaluator looks at
LONGEST = 35  # tokens of a question, as official
ANSWER_ROWS = 2  # rows that BLIP adds to BERT's vocabulary: [DEC], which begins an answer, and [ENC], a question


class BlipVQA:
    """Product over a prompt's first 8 noun chunks of p(yes) / (p(yes) + p(no)) after "{chunk}?", 0..1.

    Chunks that only name a place ("top", "the left") are left out, as officially.

    As `BLIP_vqa.py` of T2I-CompBench does it: the question's first token is [ENC], the answer's [DEC], and a prompt
    without chunks scores 1. Probabilities are not rounded to four places on the way, as they are there.

    Args:
        path: Directory of a BlipForQuestionAnswering with tokenizer and image processor. Officially BLIP's
            model_base_vqa_capfilt_large at 480 pixels.
        parser: Of noun chunks: "spacy", "rules" or "auto".
        device: `auto`, or a device as torch names it.
        dtype: Of the weights: "float32", "bfloat16", "float16".
        batch_size: Images, and pairs of image and question, a forward pass.
        offload: Between uses the model waits on the CPU.

    Raises:
        UserError: `path` holds no such model or a tokenizer without single tokens for yes and no, an unknown `parser`,
            or a `batch_size` below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        parser: str = "auto",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        offload: bool = False,
    ):
        check_batch_size(batch_size)
        folder = scorer_folder(path, "blip_vqa")
        self.parser = load_parser(parser)
        model = load_model(BlipForQuestionAnswering, folder, "blip_vqa")
        self.tokenizer, self.processor = load_tokenizer(folder), load_image_processor(folder)
        self.yes, self.no = (self._answer(word, folder) for word in ("yes", "no"))
        self.dec, self.enc = self._marks(model.config.text_config.vocab_size)
        self.batch_size = batch_size
        self.placement = Placement(model, device, dtype, offload)
        size = model.config.vision_config.image_size
        self.note = "; ".join(part for part in (f"BLIP in transformers at {size} pixels", self.parser.note) if part)

    @property
    def _model(self) -> Any:
        return self.placement.model

    def _answer(self, word: str, folder: Path) -> int:
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids == [self.tokenizer.unk_token_id]:
            raise UserError(f"the tokenizer in {folder} has no token {word!r}, which BLIP-VQA reads as answer")
        return ids[0]

    def _marks(self, rows: int) -> tuple[int, int]:
        """Ids of [DEC] and [ENC]: by name where the tokenizer has them, else the last two rows of the vocabulary."""
        named = [self.tokenizer.get_vocab().get(mark) for mark in ("[DEC]", "[ENC]")]
        if None not in named:
            return named[0], named[1]
        return rows - ANSWER_ROWS, rows - ANSWER_ROWS + 1

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records, of which the prompts are read -> [N] float32."""
        check_pairs(images, records)
        questions = [questions_of(self.parser, record.prompt) for record in records]
        scores = torch.ones(len(images), dtype=torch.float32)
        for first in range(0, len(images), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(images)))
            pairs = [(row, text) for row in rows for text in questions[row]]
            if not pairs:
                continue
            for (row, _), p in zip(pairs, self._ask([images[row] for row in rows], first, pairs), strict=True):
                scores[row] *= p
        return scores

    def _ask(self, images: list[Image.Image], first: int, pairs: list[tuple[int, str]]) -> Tensor:
        """p(yes) / (p(yes) + p(no)) for pairs of image (its row, counted from `first`) and question; [pairs].

        Only questions of one length go together: transformers' decoder looks at padding, whatever the mask.
        """
        pixels = self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        texts = [text for _, text in pairs]
        questions = plain_ids(self.tokenizer, texts, truncation=True, max_length=LONGEST)
        by_length: dict[int, list[int]] = {}
        for place, tokens in enumerate(questions):
            by_length.setdefault(len(tokens), []).append(place)
        found, model = torch.zeros(len(pairs)), self._model
        with self.placement():
            seen = model.vision_model(pixel_values=pixels.to(self.placement.device, self.placement.dtype))[0]
            for places in by_length.values():
                for start in range(0, len(places), self.batch_size):
                    part = places[start : start + self.batch_size]
                    owners = torch.tensor([pairs[place][0] - first for place in part], device=seen.device)
                    ids = torch.tensor([questions[place] for place in part], device=seen.device)
                    found[part] = self._answers(model, seen[owners], ids)
        return found

    def _answers(self, model: Any, seen: Tensor, ids: Tensor) -> Tensor:
        """[M, patches, D] and M questions of T tokens [M, T] -> [M] float32 on the CPU."""
        ids[:, 0] = self.enc
        asked = model.text_encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=seen, return_dict=True
        ).last_hidden_state
        starts = torch.full((len(ids), 1), self.dec, device=seen.device)
        logits = model.text_decoder(input_ids=starts, encoder_hidden_states=asked, return_dict=True).logits[:, 0]
        return torch.sigmoid(logits[:, self.yes].float() - logits[:, self.no].float()).cpu()


def questions_of(parser: Parser, prompt: str) -> list[str]:
    """What is asked about a prompt."""
    chunks = [chunk for chunk in parser.noun_chunks(prompt) if chunk not in LEFT_OUT]
    return [question(chunk) for chunk in chunks[:MOST_CHUNKS]]


def scorer_folder(path: str | Path, name: str) -> Path:
    """The directory of a scorer's model.

    Raises:
        UserError: there is no model in it.
    """
    folder = resolve(path)
    if not path or not (folder / "config.json").is_file():
        raise UserError(
            f"the scorer {name} finds no model in {str(path)!r} (no config.json): save it there with transformers, or "
            "name its folder with benchmark.scorers.NAME.reward.path=FOLDER (all at once: reward_models=...)"
        )
    return folder
