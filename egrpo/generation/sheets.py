"""A contact sheet a prompt: its images side by side, under each its index and its plan."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from egrpo.base.fonts import runs

COLUMNS, MOST = 4, 64  # a sheet shows no more images than that
CELL = 192  # pixels that a cell is wide at least: smaller images are enlarged by whole numbers
GAP, LINE, SIZE = 8, 15, 12  # pixels between cells, of a line of text, of its font
TITLE_LINES, PLAN_LINES = 2, 4


def sheet_png(prompt: str, cells: Sequence[tuple[Image.Image, str]], total: int) -> bytes:
    """A PNG file of the first images of a prompt and their captions. For thousands of prompts matplotlib is too slow.

    Args:
        prompt: Above them, cut to two lines.
        cells: Images of one size, with captions.
        total: Images that there are, which the sheet tells where it shows fewer.
    """
    width, height = cells[0][0].size
    scale = max(1, -(-CELL // width))
    width, height = width * scale, height * scale
    columns = min(COLUMNS, len(cells))
    lines = 1 + max(len(_wrapped(text, width, PLAN_LINES)) for _, text in cells)
    across, down = width + GAP, height + lines * LINE + GAP
    head = (TITLE_LINES + 1) * LINE
    sheet = Image.new("RGB", (max(columns, 2) * across + GAP, head + -(-len(cells) // columns) * down), "white")
    title = prompt if total == len(cells) else f"[{len(cells)} of {total}] {prompt}"
    _write(sheet, GAP, GAP, _wrapped(title, sheet.width - 2 * GAP, TITLE_LINES))
    for number, (image, text) in enumerate(cells):
        cell = Image.new("RGB", (width, down), "white")  # clips what is too long
        cell.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST))
        _write(cell, 0, height + 2, _wrapped(text, width, PLAN_LINES))
        sheet.paste(cell, (GAP + number % columns * across, head + number // columns * down))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    characters = width * 10 // (6 * SIZE)  # of the font's mean width
    return textwrap.wrap(text[: characters * lines * 2], characters, max_lines=lines, placeholder=" ...")


def _write(image: Image.Image, x: int, y: int, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        at = float(x)
        for text, path in runs(line):
            ImageDraw.Draw(image).text((at, y + number * LINE), text, fill="black", font=_font(path))
            at += _font(path).getlength(text)


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, SIZE, layout_engine=ImageFont.Layout.BASIC)
