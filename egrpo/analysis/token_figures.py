"""Figures of single tokens of shown images: their entropy over the image and along the plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egrpo.analysis.curve_figures import position, training
from egrpo.analysis.plan_text import draw_plans
from egrpo.analysis.policy_figures import policy_figures
from egrpo.analysis.shown import Shown, examples, grid_size, pairs, token_map
from egrpo.analysis.study import StudyDescription, TokenReader
from egrpo.analysis.style import ENTROPY_COLOURS, Drawn, make


def token_figures(
    folder: Path, records: pd.DataFrame, study: StudyDescription, tokens: TokenReader | None
) -> list[Drawn]:
    """Draws every figure that needs tokens or a training run into `folder/figures`."""
    figures = folder / "figures"
    absent = None if tokens else "the tokens were not at hand"
    shown = [] if tokens is None else examples(records, study, tokens)
    planned = [s for s in shown if any(s.tokens.plan_texts[i] for i in s.places)]
    no_plans = absent or (None if planned else "no setting draws after a plan")
    heat = Drawn(
        "heat_maps",
        "Entropy of the tokens of an image",
        "Each setting's best (left) and worst image of one prompt, with the entropy of its tokens where they stand. "
        "The prompt is the one whose images differ most in reward: "
        + (f'"{shown[0].rows[0]["prompt"]}"' if shown else "none"),
    )
    plans = Drawn(
        "plan_entropy",
        "Entropy of the tokens of a plan",
        "The plans of the same images; the lighter a token, the less certain the model was of it.",
    )
    drawn = [
        make(figures, heat, absent, grid_size(shown), lambda f: _heat_maps(f, folder, shown, study.entropy)),
        _plans(figures, plans, no_plans, planned),
        position(figures, records, study, tokens),
        *policy_figures(figures, folder, shown, planned, study, absent),
    ]
    return [*drawn, training(figures, study)]


def _heat_maps(figure: Figure, folder: Path, shown: Sequence[Shown], entropy: str) -> None:
    def of(one: Shown) -> np.ndarray:
        return one.tokens.guided_entropy if entropy == "guided" else one.tokens.image_entropy

    top = max(float(of(one)[place].max()) for one in shown for place in one.places) or 1.0

    def draw(axis: Axes, one: Shown, place: int) -> Any:
        return token_map(axis, of(one)[place], cmap=ENTROPY_COLOURS, vmin=0, vmax=top)

    last, axes = pairs(figure, folder, shown, draw)
    figure.colorbar(last, ax=axes, location="bottom", shrink=0.6, aspect=35, label="token entropy, share of log V")


def _plans(figures: Path, about: Drawn, reason: str | None, planned: Sequence[Shown]) -> Drawn:
    tops = [float(np.max(one.tokens.text_entropy[i], initial=0)) for one in planned for i in one.places]
    top = max(tops, default=0.0) or 1.0
    colours = matplotlib.colormaps[ENTROPY_COLOURS]
    parts = []
    for one in planned:
        for row, place in zip(one.rows, one.places, strict=True):
            shades = [colours(value / top) for value in one.tokens.text_entropy[place]]
            parts.append((f"{one.setting}, reward {row['reward']:.2f}", one.tokens.plan_texts[place], shades))
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, top), colours)
    return draw_plans(figures, about, reason, parts, scale=scale)
