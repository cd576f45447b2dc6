"""CLIPScore: the cosine of image and prompt (T2I-CompBench, non-spatial), and CLIP's choice among colours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from egrpo.base.errors import UserError
from egrpo.base.tokens import plain_ids
from egrpo.benchmarks.blip_vqa import scorer_folder
from egrpo.benchmarks.language import load_parser
from egrpo.rewards.placement import Placement, check_batch_size, in_batches
from egrpo.rewards.pretrained import load_image_processor, load_model, load_tokenizer
from egrpo.types import PromptRecord


class CLIPScore:
    """Cosine of CLIP's image and text embeddings, -1..1, as `CLIP_similarity.py` of T2I-CompBench takes it.

    torchmetrics' CLIPScore is 100 times this, and 0 where this is negative.

    Args:
        path: Directory of a CLIPModel with tokenizer and image processor; officially openai/clip-vit-base-patch32.
        without_adjectives: Compare with the prompt less its adjectives, as 3-in-1 does.
        parser: Of adjectives: "spacy", "rules" or "auto".
        device: `auto`, or a device as torch names it.
        dtype: Of the weights: "float32", "bfloat16", "float16".
        batch_size: Images a forward pass.
        offload: Between uses the model waits on the CPU.

    Raises:
        UserError: `path` holds no such model, an unknown `parser`, or a `batch_size` below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        without_adjectives: bool = False,
        parser: str = "auto",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        offload: bool = False,
    ):
        check_batch_size(batch_size)
        folder = scorer_folder(path, "clip")
        self.parser = load_parser(parser) if without_adjectives else None
        model = load_model(CLIPModel, folder, "clip")
        self.tokenizer, self.processor = load_tokenizer(folder), load_image_processor(folder)
        self.longest = model.config.text_config.max_position_embeddings
        self.batch_size, self.placement = batch_size, Placement(model, device, dtype, offload)
        self.note = "adjectives by rules, officially by spaCy" if self.parser and self.parser.note else ""

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records, of which the prompts are read -> [N] float32.

        Raises:
            UserError: a prompt has more tokens than the model reads, at which the official evaluator fails too.
        """
        return in_batches(self._score, images, records, self.batch_size)

    def _score(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        texts = [r.prompt if self.parser is None else self.parser.without_adjectives(r.prompt) for r in records]
        with self.placement():
            return (self.image_vectors(images) * self.text_vectors(texts)).sum(-1)

    def image_vectors(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D] float32 of length 1, to be called within `with self.placement():`."""
        pixels = self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        model: Any = self.placement.model
        output = model.vision_model(pixel_values=pixels.to(self.placement.device, self.placement.dtype))
        return normalize(model.visual_projection(output.pooler_output).float(), dim=-1)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32 of length 1, to be called within `with self.placement():`."""
        rows = plain_ids(self.tokenizer, list(texts))
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.longest:
                raise UserError(f"the prompt {text!r} has {len(row)} tokens, and CLIP reads {self.longest}: shorten it")
        tokens = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.placement.device)
        model: Any = self.placement.model
        output = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return normalize(model.text_projection(output.pooler_output).float(), dim=-1)


class ColorNamer:
    """Names the colour of a cut-out by CLIP's nearest description, as GenEval does (there with ViT-L/14).

    Args:
        clip: The model.
        colors: Names to choose from.
    """

    TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

    def __init__(self, clip: CLIPScore, colors: Sequence[str]):
        self.clip, self.colors = clip, tuple(colors)
        self._classes = lru_cache(maxsize=256)(self._class_vectors)

    def __call__(self, cuts: Sequence[Image.Image], name: str) -> list[str]:
        """The colour of each of N cut-outs that show a `name`."""
        if not cuts:
            return []
        with self.clip.placement():
            best = (self.clip.image_vectors(cuts) @ self._classes(name).T).argmax(dim=1)
        return [self.colors[index] for index in best.tolist()]

    def _class_vectors(self, name: str) -> Tensor:
        """[colours, D]: the mean over the templates of vectors of length 1, of length 1 again."""
        texts = [t.format(color=color, name=name) for color in self.colors for t in self.TEMPLATES]
        vectors = self.clip.text_vectors(texts).reshape(len(self.colors), len(self.TEMPLATES), -1)
        return normalize(vectors.mean(dim=1), dim=-1)


def cut(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """What a box of corners in pixels shows, at least one pixel of it."""
    left, top = (min(max(int(x), 0), side - 1) for x, side in zip(box[:2], image.size))
    right, bottom = (
        min(max(round(x), low + 1), side) for x, low, side in zip(box[2:], (left, top), image.size, strict=True)
    )
    return image.crop((left, top, right, bottom))
