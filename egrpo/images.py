"""Pixels to pictures, and sheets of captioned pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from egrpo.base.files import writing
from egrpo.base.fonts import any_text


def to_images(pixels: Tensor) -> list[Image.Image]:
    """[N, H, W, 3] uint8 -> N images."""
    return [Image.fromarray(image) for image in pixels.cpu().numpy()]


def save_sheet(
    path: Path, pictures: Sequence[np.ndarray], captions: Sequence[str], title: str, columns: int = 6
) -> None:
    """Writes a grid of [H, W, 3] uint8 pictures, each under its caption."""
    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[:2]
    across = 1.8 * max(1.0, width / height)  # inches a picture; its caption has four lines at most
    size = (across * columns, (across * height / width + 0.75) * rows + 0.5)
    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(plain_text(caption), fontsize=7)
    figure.suptitle(plain_text(title), fontsize=11)
    with any_text():
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / size[1]))
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure; the folder is made. Figures are made without pyplot, which belongs to the caller."""
    with writing(path), any_text():
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def caption(prompt: str, lines: Sequence[str], width: int = 30) -> str:
    """The prompt, wrapped and cut to three lines, with more lines under it."""
    return "\n".join([*textwrap.wrap(prompt, width, max_lines=3, placeholder=" ..."), *lines])


def plain_text(text: str) -> str:
    """Text that matplotlib takes as it is: "$" would start a formula."""
    return text.replace("$", r"\$")
