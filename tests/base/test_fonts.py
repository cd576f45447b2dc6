"""Pictures of any text: a fallback font where there is one, no flood of warnings, and nobody's backend is changed."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from egrpo.base.fonts import FIRST, any_text, fallbacks, runs
from egrpo.generation.sheets import sheet_png
from egrpo.images import save_sheet


@pytest.fixture
def chinese(tmp_path, monkeypatch):
    """A font with one sign, a black square, under the name of one that systems have."""
    pen = TTGlyphPen(None)
    for point, move in (((0, 0), pen.moveTo), ((0, 900), pen.lineTo), ((900, 900), pen.lineTo), ((900, 0), pen.lineTo)):
        move(point)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "sign"])
    font.setupCharacterMap({ord("日"): "sign"})
    font.setupGlyf({".notdef": empty, "sign": square})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "sign": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Noto Sans CJK SC", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path = tmp_path / "chinese.ttf"
    font.save(path)
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [*manager.ttflist])
    manager.addfont(path)
    return path


def sheet(text: str) -> bytes:
    return sheet_png(text, [(Image.new("RGB", (48, 48)), text)], 1)


def test_signs_are_taken_from_a_font_that_has_them(chinese):
    assert "Noto Sans CJK SC" in fallbacks()
    assert runs("a 日本") == [("a ", FIRST), ("日", chinese), ("本", FIRST)]
    assert sheet("日") != sheet("本")  # a sign, and a box


def test_signs_that_no_font_has_are_boxes_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_sheet(tmp_path / "a.png", [np.zeros((8, 8, 3), np.uint8)], ["日本 🎉"], "🎉")
    assert runs("ab\ue123") == [("ab\ue123", FIRST)]


def test_plain_text_is_drawn_by_the_usual_font():
    with any_text():
        from matplotlib import rcParams

        assert rcParams["font.family"][0] == "sans-serif"


def test_importing_the_package_leaves_the_callers_backend():
    code = (
        "import matplotlib; matplotlib.use('svg')\n"
        "import egrpo.training.report, egrpo.training.entropy, egrpo.benchmarks.curve, egrpo.analysis.style\n"
        "from egrpo import Generator\n"
        "print(matplotlib.get_backend())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "svg"
