"""HPS v2.1 (Wu et al. 2023, arXiv 2306.09341): how well people would find an image to fit its prompt."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from egrpo.base.errors import UserError
from egrpo.base.tokens import plain_ids
from egrpo.rewards.placement import Placement, check_batch_size, check_pairs, in_batches, model_folder
from egrpo.rewards.preparation import Preparation, rows_by_size, to_device
from egrpo.rewards.pretrained import load_image_processor, load_model, load_tokenizer
from egrpo.types import PromptRecord


class HPSReward:
    """Cosine of a CLIP's embeddings of image and prompt; -1..1, some 0.2 to 0.35 with the published weights.

    Args:
        path: Directory of a CLIPModel with tokenizer and image processor (`python -m egrpo.convert kind=hps`).
        device: `auto`, or a device as torch names it.
        dtype: Of the weights: "float32", "bfloat16", "float16".
        batch_size: Images a forward pass.
        offload: Between uses the model waits on the CPU.
        precision: Of products of float32 weights: "float32", "tf32", "bfloat16" or "float16"; see `Placement`.

    Raises:
        FileNotFoundError: `path` holds no model.
        UserError: `batch_size` is below 1, or `path` holds another model, or a tokenizer that does not end a text with
            its end-of-text token.
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
        folder = model_folder(path, "hps")
        model = load_model(CLIPModel, folder, "hps", device, offload)
        self.tokenizer = load_tokenizer(folder)
        processor = load_image_processor(folder)
        self.mean, self.std = processor.image_mean, processor.image_std
        self.side = model.config.vision_config.image_size
        self.context = model.config.text_config.max_position_embeddings
        self.batch_size = batch_size
        end = self.tokenizer.eos_token_id
        if end is None or self.tokenizer("").input_ids[-1:] != [end]:
            raise UserError(f"the tokenizer in {folder} does not end a text with its end-of-text token, as CLIP's does")
        # CLIPModel reads the text at the token that its configuration names, and old configurations name a wrong one.
        model.text_model.eos_token_id = end
        self.placement = Placement(model, device, dtype, offload, precision)
        self.preparation = Preparation(cut, self._finish, self.placement.device)

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images of any sizes and N records -> [N] float32."""
        check_pairs(images, records)
        batches = rows_by_size(images, range(len(images)), self.batch_size)
        with self.placement() as model:
            return in_batches(
                lambda i, r: self._score(model, i, r), images, records, self.batch_size, self.preparation, batches
            )

    def embed(self, images: list[Image.Image]) -> Tensor:
        """[N, D] float32 of length 1: where images lie for this model, whatever their prompts."""
        batches = rows_by_size(images, range(len(images)), self.batch_size)
        with (
            self.placement() as model,
            self.preparation.ahead([[images[row] for row in rows] for rows in batches]) as prepared,
        ):
            found = torch.cat([self.embed_images(model, pictures) for pictures in prepared])
        order = [row for rows in batches for row in rows]
        return found[torch.tensor(order).argsort().to(found.device)]

    def _score(self, model: Any, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(record.prompt for record in records))}
        order = to_device(torch.tensor([rows[record.prompt] for record in records]), self.placement.device)
        texts = self.embed_prompts(model, list(rows))[order]
        return (self.embed_images(model, images) * texts).sum(-1)

    def embed_images(self, model: Any, images: list[Image.Image]) -> Tensor:
        """[N, D] float32 of length 1; images of several sizes are prepared one by one."""
        if len({image.size for image in images}) > 1:
            pixels = torch.cat([self.preparation([image]) for image in images]).to(self.placement.dtype)
        else:
            pixels = self.preparation(images).to(self.placement.dtype)
        return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def embed_prompts(self, model: Any, prompts: list[str]) -> Tensor:
        """[P, D] float32 of length 1."""
        ids = to_device(self.input_ids(prompts), self.placement.device)
        # Without a mask: attention is causal and the text is read at its end, so padding after it is never seen.
        return F.normalize(model.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)

    def _finish(self, pixels: Tensor) -> Tensor:
        return normalised(fitted(pixels, self.side), self.mean, self.std)

    def input_ids(self, prompts: list[str]) -> Tensor:
        """[P, context] int64, padded with 0; a prompt that is too long is cut and still ends with end-of-text."""
        rows = plain_ids(self.tokenizer, [clean(p) for p in prompts], truncation=True, max_length=self.context)
        ids = torch.zeros(len(rows), self.context, dtype=torch.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


def clean(prompt: str) -> str:
    """The text as open_clip's tokenizer cleans it: mended by ftfy, HTML entities decoded twice, blanks, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip().lower()


def pixel_values(images: list[Image.Image], side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[N, 3, side, side] float32: `fit` into a square, padding and all normalised by `mean` and `std`."""
    return normalised(torch.stack([fit(image, side) for image in images]), mean, std)


def fit(image: Image.Image, side: int) -> Tensor:
    """[3, side, side] float32: the longer side becomes `side`, the rest is black on both sides alike."""
    return fitted(cut(image)[None], side)[0]


def cut(image: Image.Image) -> Tensor:
    """uint8 [3, H, W]: the image as it is."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def fitted(pixels: Tensor, side: int) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N, 3, side, side] on the same device, as `fit` describes it.

    HPS resizes the float tensor, not 8-bit pixels, and does not clamp what bicubic interpolation overshoots.
    """
    pixels = pixels.float() / 255
    longer = max(pixels.shape[2:])
    height, width = (max(1, round(length * (side / longer))) for length in pixels.shape[2:])
    if longer != side:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(pixels, (left, side - width - left, top, side - height - top))


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std by channel of [N, 3, H, W]."""
    centre, scale = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return (pixels - to_device(centre, pixels.device)) / to_device(scale, pixels.device)
