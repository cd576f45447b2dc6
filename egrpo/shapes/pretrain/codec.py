"""The VQ decoder learns to paint from fixed codes, the encoder to name them.

Trained plainly, a VQ-VAE this small learns nothing readable on a CPU. Here the codes are known (one per patch), so that
the decoder is a regression, the encoder a classification, and the language model need not wait for either.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egrpo.shapes import atlas, oracle
from egrpo.shapes.plans import random_scene
from egrpo.shapes.scene import Thing

log = logging.getLogger(__name__)


def draw_codes(count: int, rng: np.random.Generator) -> Tensor:
    """[count, 36] codes of random scenes."""
    return torch.from_numpy(np.stack([atlas.encode(random_scene(rng), rng) for _ in range(count)]))


def to_pixels(codes: Tensor) -> Tensor:
    """[N, 36] codes -> [N, 3, 48, 48] in -1..1, exactly as the codes say."""
    return torch.from_numpy(atlas.paint(codes.numpy())).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_codec(vqmodel: Any, *, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Trains encoder and decoder in place against the fixed codebook.

    Loss: mean absolute plus mean squared pixel error of the painted codes, and cross-entropy of the encoder's output
    against the codes (cosine to the unit-norm codebook over a temperature of 0.05).
    """
    rng = np.random.default_rng(seed)
    vqmodel.train().to(memory_format=torch.channels_last)
    codebook = vqmodel.quantize.embedding.weight.requires_grad_(False)
    parameters = [p for p in vqmodel.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = 0.1 if steps >= 20 else 0.3  # as a share of all steps; a tenth of 10 steps would be divided by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=warm_up)
    start = time.monotonic()
    for step in range(steps):
        codes = draw_codes(batch_size, rng)
        pixels = to_pixels(codes).to(memory_format=torch.channels_last)
        painted = vqmodel.decode(codes)
        latents = vqmodel.quant_conv(vqmodel.encoder(pixels)).permute(0, 2, 3, 1).flatten(0, 2)
        naming = F.cross_entropy(latents @ codebook.T / 0.05, codes.flatten())
        difference = painted - pixels
        loss = difference.abs().mean() + difference.square().mean() + 0.02 * naming
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            psnr = -10 * (difference.square().mean() / 4).log10().item()
            log.info(
                "codec %d/%d: psnr %.1f dB, naming %.2f, %.0f s", step, steps, psnr, naming, time.monotonic() - start
            )
    vqmodel.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def measure_codec(vqmodel: Any, *, num_scenes: int = 500, seed: int = 1) -> dict[str, float]:
    """What the oracle makes of decoded pictures, on fresh scenes.

    `read_share` of scenes that it reads exactly from ground-truth codes; `reconstruction_share` the same through
    encoder and decoder; `named_share` of patches that the encoder names; `psnr` in dB.
    """
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(num_scenes)]
    codes = torch.from_numpy(np.stack([atlas.encode(scene, rng) for scene in scenes]))
    read = reread = named = 0
    error = 0.0
    for first in range(0, num_scenes, 50):
        part, truth = codes[first : first + 50], scenes[first : first + 50]
        pixels = to_pixels(part)
        painted = vqmodel.decode(part)
        again = vqmodel.encode(pixels).image_tokens.view(part.shape)
        error += (painted - pixels).square().mean().item() * len(part)
        named += (again == part).sum().item()
        read += sum(_reads(image, scene) for image, scene in zip(to_uint8(painted), truth, strict=True))
        reread += sum(_reads(image, scene) for image, scene in zip(to_uint8(vqmodel.decode(again)), truth, strict=True))
    return {
        "read_share": read / num_scenes,
        "reconstruction_share": reread / num_scenes,
        "named_share": named / codes.numel(),
        "psnr": -10 * float(np.log10(error / num_scenes / 4)),
    }


def to_uint8(pixels: Tensor) -> np.ndarray:
    """[N, 3, H, W] in -1..1 -> [N, H, W, 3] uint8."""
    return ((pixels + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _reads(image: np.ndarray, scene: list[Thing]) -> bool:
    """Whether the oracle sees exactly this scene."""

    def key(thing: Thing) -> tuple[str, str, str, int, int]:
        return thing.shape or "?", thing.color, thing.texture, int(thing.x), int(thing.y)

    return sorted(map(key, oracle.detect(image))) == sorted(map(key, scene))
