"""A reward that costs nothing."""

from __future__ import annotations

from PIL import Image, ImageStat

from egrpo.types import PromptRecord


def brightness(images: list[Image.Image], records: list[PromptRecord]) -> list[float]:
    """Mean grey value of each image, 0..1."""
    return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]
