"""Plans as figures: every token on its own shade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from egrpo.analysis.style import COLUMN, Drawn, make, shorten

Shade = tuple[float, ...]  # red, green, blue, alpha
WIDTH = 52  # characters a line
MOST_LINES = 12  # a plan
LINE = 0.145  # inches
GREY_OF = (0.299, 0.587, 0.114)  # how light red, green and blue look (ITU-R BT.601)


def draw_plans(
    folder: Path,
    about: Drawn,
    reason: str | None,
    parts: Sequence[tuple[str, Sequence[str], Sequence[Shade]]],
    scale: ScalarMappable | None = None,
    legend: Sequence[Patch] = (),
) -> Drawn:
    """Draws plans under each other, longer ones cut.

    Args:
        folder, about, reason: of the figure, as in `egrpo.analysis.style.make`.
        parts: heading, token texts, and a shade for each token.
        scale, legend: what the shades mean: a scale, or named patches.
    """
    pieces = [(heading, *lay_out(texts, shades)) for heading, texts, shades in parts]
    lines = sum(len(rows) + 2 + bool(left) for _, rows, left in pieces)
    height = lines * LINE + 0.5

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.set(xlim=(0, WIDTH), ylim=(lines, 0))
        axis.axis("off")
        at = 0.0
        for heading, rows, left in pieces:
            axis.text(0, at + 0.5, shorten(heading, WIDTH), va="center", weight="bold")
            at += 1
            for row in rows:
                for column, text, shade in row:
                    _token(axis, column, at, text, shade)
                at += 1
            if left:
                axis.text(0, at + 0.5, f"... and {left} more tokens", va="center", style="italic")
                at += 1
            at += 1
        if scale is not None:
            figure.colorbar(
                scale, ax=axis, location="bottom", shrink=0.6, aspect=35, label="token entropy, share of log V"
            )
        if legend:
            figure.legend(handles=list(legend), loc="outside lower center", ncols=3)

    return make(folder, about, reason, (COLUMN, height), draw)


def lay_out(texts: Sequence[str], shades: Sequence[Shade]) -> tuple[list[list[tuple[int, str, Shade]]], int]:
    """Lines of (column, text, shade), and how many tokens were left out."""
    rows: list[list[tuple[int, str, Shade]]] = [[]]
    column = 0
    for done, (text, shade) in enumerate(zip(texts, shades, strict=True)):
        text = shorten_token(text)
        if column + len(text) > WIDTH:
            if len(rows) == MOST_LINES:
                return rows, len(texts) - done
            rows.append([])
            column = 0
        rows[-1].append((column, text, shade))
        column += len(text)
    return rows, 0


def shorten_token(text: str) -> str:
    """A token as it is drawn: no line breaks, never empty, never longer than a line."""
    text = text.replace("\n", "↵").replace("\t", " ")
    text = "".join(sign if sign.isprintable() else "□" for sign in text) or "∅"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _token(axis: Any, column: int, line: float, text: str, shade: Shade) -> None:
    box = Rectangle((column, line + 0.06), len(text), 0.88, facecolor=shade, edgecolor="0.75", linewidth=0.3)
    axis.add_patch(box)
    light = sum(weight * part for weight, part in zip(GREY_OF, shade, strict=False))
    for place, sign in enumerate(text):
        # Signs are set one by one: they then fill the columns whatever the font does with them.
        if sign != " ":
            colour = "black" if light > 0.5 else "white"
            axis.text(
                column + place + 0.5, line + 0.52, sign, ha="center", va="center", family="monospace", color=colour
            )
