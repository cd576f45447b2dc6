"""How figures look: a paper column wide, readable in grey, the same file for the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egrpo.base.files import writing
from egrpo.base.fonts import any_text

COLUMN = 3.3  # inches
STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # a "$" in a prompt is a "$"
}
# Told apart by marker and line first; the colours differ in lightness, too.
COLOURS = ("#000000", "#2b6cb0", "#d9822b", "#8a8a8a", "#6b2d73", "#4f9d69")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 0.6)))
HATCHES = ("", "////", "....")
ENTROPY_COLOURS = "viridis"  # lightness rises with entropy


@dataclass(frozen=True)
class Drawn:
    """A figure of the report: drawn to `figures/NAME.png` and `.pdf`, or left out for a reason."""

    name: str
    title: str
    caption: str
    reason: str | None = None


def save(folder: Path, name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Draws a figure of `size` inches into `folder/NAME.png` (200 dpi) and `folder/NAME.pdf`."""
    with writing(folder / f"{name}.png"), matplotlib.rc_context(STYLE), any_text():  # a prompt may hold any sign
        folder.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        figure.set_layout_engine("none")  # found once, kept
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the setting at a place in the study's order."""
    return {"color": colour(index), "marker": MARKERS[index % len(MARKERS)], "linestyle": LINES[index % len(LINES)]}


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def shorten(text: str, length: int) -> str:
    """One line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


def zero_line(axis: Axes) -> None:
    axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)


def legend_outside(figure: Figure, axes: Iterable[Axes], columns: int, where: str = "lower") -> None:
    """One legend for all panels, under ("lower") or over them ("upper", where an axis' name is under them)."""
    entries: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        place: dict[str, Any] = {"loc": f"outside {where} center", "ncols": columns}
        figure.legend(list(entries.values()), list(entries), columnspacing=1.2, handletextpad=0.5, **place)


def make(
    folder: Path, about: Drawn, reason: str | None, size: tuple[float, float], draw: Callable[[Figure], None]
) -> Drawn:
    """Draws a figure into `folder`, or leaves it out where there is a reason to."""
    if reason:
        return replace(about, reason=reason)
    save(folder, about.name, size, draw)
    return about
