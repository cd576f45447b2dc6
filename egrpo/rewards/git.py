"""GIT as a visual question answerer (Wang et al. 2022, arXiv 2205.14100): does the image show what the prompt names?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, GitForCausalLM

from egrpo.base.errors import UserError
from egrpo.base.tokens import plain_ids
from egrpo.rewards.placement import Placement, check_batch_size, check_pairs, in_batches, model_folder
from egrpo.rewards.preparation import Preparation, by_level, cut_as, levels_of, to_device
from egrpo.rewards.pretrained import load_image_processor, load_model, load_tokenizer, unicode_text
from egrpo.types import PromptRecord

UNASKED = ("spatial", "numeracy")  # task types whose prompts T2I-R1 does not ask about; they score 0
NAMELESS = 1.0  # score of a prompt without nouns


class GITReward:
    """Mean over a prompt's nouns of p(yes) / (p(yes) + p(no)) after "{noun}?", 0..1, as T2I-R1 and EG-GRPO use GIT.

    The nouns are `attr_nouns`, or `nouns` where that key is absent. Some prompts get a constant: see `applies`.

    Args:
        path: Directory of a GitForCausalLM with tokenizer and image processor.
        device: `auto`, or a device as torch names it.
        dtype: Of the weights: "float32", "bfloat16", "float16".
        batch_size: Images, and pairs of image and question, a forward pass.
        offload: Between uses the model waits on the CPU.
        precision: Of products of float32 weights: "float32", "tf32", "bfloat16" or "float16"; see `Placement`.

    Raises:
        FileNotFoundError: `path` holds no model.
        UserError: `batch_size` is below 1, or `path` holds another model, or a tokenizer without single tokens for yes
            and no.
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
    ):
        check_batch_size(batch_size)
        folder = model_folder(path, "git")
        model = load_model(GitForCausalLM, folder, "git", device, offload)
        self.tokenizer, self.processor = load_tokenizer(folder), load_image_processor(folder)
        self.longest = model.config.max_position_embeddings
        self.batch_size = batch_size
        self.yes, self.no = (self._answer(word, folder) for word in ("yes", "no"))
        self.placement = Placement(model, device, dtype, offload, precision)
        levels = levels_of(self.processor)
        self.preparation = Preparation(
            cut_as(self.processor), lambda pixels: by_level(pixels, levels), self.placement.device
        )

    def _answer(self, word: str, folder: Path) -> int:
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids == [self.tokenizer.unk_token_id]:
            raise UserError(f"the tokenizer in {folder} has no token {word!r}, which the git reward reads as answer")
        return ids[0]

    def applies(self, records: list[PromptRecord]) -> Tensor:
        """[N] bool, False where the score is a constant: 0 for spatial and numeracy prompts, 1 without nouns."""
        return torch.tensor([r.task_type not in UNASKED and bool(nouns_of(r)) for r in records], dtype=torch.bool)

    def check(self, records: list[PromptRecord]) -> list[str]:
        """Nouns about which nothing would be asked, a sentence each: see `egrpo.rewards.base.Reward`."""
        return [
            f"the noun {noun!r} of the prompt {record.prompt!r} has no characters that GIT reads: write it in other "
            "letters, or leave it out"
            for record in records
            if record.task_type not in UNASKED
            for noun in nouns_of(record)
            if not plain_ids(self.tokenizer, [unicode_text(noun)], add_special_tokens=False)[0]
        ]

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and N records -> [N] float32, 0..1."""
        check_pairs(images, records)
        scores = torch.tensor([0.0 if r.task_type in UNASKED else NAMELESS for r in records], dtype=torch.float32)
        rows = self.applies(records).nonzero().flatten().tolist()
        if rows:
            with self.placement() as model:
                scores[rows] = in_batches(
                    lambda i, r: self._score(model, i, r),
                    [images[row] for row in rows],
                    [records[row] for row in rows],
                    self.batch_size,
                    self.preparation,
                )
        return scores

    def _score(self, model: Any, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        questions = [f"{noun}?" for record in records for noun in nouns_of(record)]
        counts = torch.tensor([len(nouns_of(record)) for record in records])
        owners = torch.arange(len(records)).repeat_interleave(counts)
        logits = self.last_logits(model, images, owners, questions)
        p_yes = (logits[:, self.yes] - logits[:, self.no]).sigmoid()  # the two softmax values' share of yes
        table = torch.arange(int(counts.max())) < counts[:, None]  # [N, most nouns], row by row as the questions
        counts, table = to_device(counts, p_yes.device), to_device(table, p_yes.device)
        return torch.zeros_like(table, dtype=torch.float32).masked_scatter(table, p_yes).sum(1) / counts

    def last_logits(self, model: Any, images: list[Image.Image], owners: Tensor, questions: list[str]) -> Tensor:
        """[Q, vocabulary] float32: logits after question q about image owners[q]."""
        prefix = self._read(model, images)
        steps = range(0, len(questions), self.batch_size)
        parts = [
            self._ask(
                model, prefix, owners[first : first + self.batch_size], questions[first : first + self.batch_size]
            )
            for first in steps
        ]
        return torch.cat(parts).float()

    def _read(self, model: Any, images: list[Image.Image]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [N, heads, 1 + patches + 1, width] of each layer for the images and [CLS].

        No image token attends to text and every question begins with [CLS], so all questions share them.
        """
        pixels = self.preparation(images).to(self.placement.dtype)
        start = torch.full((len(images), 1), self.tokenizer.cls_token_id, device=self.placement.device)
        cache = model.git(input_ids=start, pixel_values=pixels, use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _ask(self, model: Any, prefix: list[tuple[Tensor, Tensor]], owners: Tensor, questions: list[str]) -> Tensor:
        tensors = (*self.question_ids(questions), owners)
        ids, last, owners = (to_device(tensor, self.placement.device) for tensor in tensors)
        # Without a mask: attention is causal and padding stands on the right, so no token that is read sees it.
        hidden = model.git(
            input_ids=ids,
            position_ids=torch.arange(1, 1 + ids.shape[1], device=ids.device)[None],  # position 0 is that of [CLS]
            past_key_values=DynamicCache([(keys[owners], values[owners]) for keys, values in prefix]),
            use_cache=True,
        ).last_hidden_state
        return model.output(hidden[torch.arange(len(ids), device=ids.device), last])

    def question_ids(self, questions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids [Q, L] int64 without [CLS] and [SEP], padded on the right, and the last real index of each [Q].

        Of a question beyond the model's positions, the beginning and the question mark stay.
        """
        room = self.longest - 1
        texts = [unicode_text(question) for question in questions]
        rows = plain_ids(self.tokenizer, texts, add_special_tokens=False, verbose=False)
        rows = [row if len(row) <= room else row[: room - 1] + row[-1:] for row in rows]
        ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids, torch.tensor([len(row) - 1 for row in rows])


def nouns_of(record: PromptRecord) -> list[str]:
    """What is asked about: `attr_nouns` where the record has that key, else `nouns`; none where they are null."""
    return (record.nouns if record.attr_nouns is None else record.attr_nouns) or []
