"""Writing a trained network: half precision on disk, single precision when loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from egrpo.shapes import atlas


def save_half(model: Any, target: Path) -> None:
    """Writes configuration and float16 weights into `target`. The configuration names float32, which
    `from_pretrained` therefore computes in: half precision is slow and coarse on a CPU."""
    model.to(torch.float16).save_pretrained(target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def save_clip_like(model: Any, tokenizer: Any, target: Path) -> None:
    """Writes a trained network, its tokenizer, and CLIP's image processor for the world's pictures into `target`."""
    save_half(model.eval(), target)
    tokenizer.save_pretrained(target)
    CLIPImageProcessorPil(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": atlas.SIDE},
        crop_size={"height": atlas.SIDE, "width": atlas.SIDE},
    ).save_pretrained(target)
