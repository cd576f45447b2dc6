"""Fonts for any text: matplotlib's own has no Chinese, Japanese and Korean signs and few emoji; others stand in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FIRST = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
# Families that systems have, of outlines: matplotlib and Pillow draw no fonts of coloured pictures.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic"),
    *("Noto Emoji", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol", "Noto Sans Symbols2"),
)


@contextmanager
def any_text() -> Iterator[None]:
    """Within, matplotlib takes signs that its font lacks from others that are installed; what none has is a box."""
    family = [*matplotlib.rcParams["font.family"], *fallbacks()]
    with matplotlib.rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def fallbacks() -> list[str]:
    """Those of `FALLBACKS` that are installed, in order."""
    there = set(font_manager.fontManager.get_font_names())
    return [name for name in FALLBACKS if name in there]


def runs(text: str) -> list[tuple[str, Path]]:
    """The text in pieces, each with the file of a font that has its signs; of what none has, the first font."""
    found: list[tuple[str, Path]] = []
    for sign in text:
        path = next((path for path in _files(tuple(fallbacks())) if ord(sign) in _signs(path)), FIRST)
        if found and found[-1][1] == path:
            found[-1] = (found[-1][0] + sign, path)
        else:
            found.append((sign, path))
    return found


@cache
def _files(families: tuple[str, ...]) -> tuple[Path, ...]:
    return (FIRST, *(Path(font_manager.findfont(family)) for family in families))


@cache
def _signs(path: Path) -> frozenset[int]:
    return frozenset(FT2Font(str(path)).get_charmap())
