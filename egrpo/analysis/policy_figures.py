"""What an entropy policy does to the tokens of shown images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from egrpo.algorithm import group_advantages
from egrpo.analysis.plan_text import draw_plans
from egrpo.analysis.shown import Shown, grid_size, pairs, token_map
from egrpo.analysis.study import StudyDescription, TokenTable
from egrpo.analysis.style import Drawn, make

CLASSES = ("excluded", "plain", "bonus")
CLASS_GREYS = ("#1a1a1a", "#a6a6a6", "#ffffff")


def classify(
    tokens: TokenTable, rewards: np.ndarray, policy: Callable[..., Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What an entropy policy makes of every token of a prompt's n images, taken as one group.

    Returns:
        For each image, of its plan [plan tokens] and of its image tokens [T]: 0 = loses the advantage, 1 = carries its
        sequence's, 2 = carries more. Where the sequence's advantage is 0 there is nothing to tell: -1.
    """
    n, longest = len(rewards), max(len(row) for row in tokens.text_entropy)
    entropy, mask = np.zeros((n, longest), np.float32), np.zeros((n, longest), bool)
    for line, row in enumerate(tokens.text_entropy):
        entropy[line, : len(row)], mask[line, : len(row)] = row, True
    entropy = np.concatenate([entropy, tokens.image_entropy], axis=1)
    mask = np.concatenate([mask, np.ones_like(tokens.image_entropy, dtype=bool)], axis=1)
    is_image = np.arange(entropy.shape[1]) >= longest
    plain = group_advantages(torch.tensor(rewards, dtype=torch.float32), n)
    shaped, _ = policy(
        plain, torch.tensor(entropy), torch.tensor(mask), torch.tensor(is_image).expand(n, -1).contiguous()
    )
    difference = shaped.numpy() - plain.numpy()[:, None]
    kind = np.where(np.abs(difference) <= 1e-6, 1, np.where(shaped.numpy() == 0, 0, 2))
    kind[plain.numpy() == 0] = -1
    return [(kind[i, : len(tokens.text_entropy[i])], kind[i, longest:]) for i in range(n)]


def policy_figures(
    figures: Path,
    folder: Path,
    shown: Sequence[Shown],
    planned: Sequence[Shown],
    study: StudyDescription,
    absent: str | None,
) -> list[Drawn]:
    image = Drawn(
        "policy_image",
        "What the entropy policy does to image tokens",
        "Black: loses the advantage and keeps the KL term; grey: carries its sequence's advantage; white: carries "
        "more. The images of a prompt are one group.",
    )
    text = Drawn(
        "policy_plan", "What the entropy policy does to plan tokens", "As above, for the plans of these images."
    )
    reason = absent or (None if study.entropy_policy else "the study names no entropy policy")
    kinds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if study.entropy_policy and not absent:
        several = [s for s in shown if len(s.rewards) > 1 and np.ptp(s.rewards) > 0]
        kinds = {s.setting: classify(s.tokens, s.rewards, study.entropy_policy) for s in several}
        reason = None if kinds else "all images of the shown prompt have the same reward: there is no advantage"
    shown, planned = ([s for s in some if s.setting in kinds] for some in (shown, planned))
    legend = [Patch(facecolor=g, edgecolor="black", label=c) for c, g in zip(CLASSES, CLASS_GREYS, strict=True)]

    def draw(figure: Figure) -> None:
        style = {"cmap": ListedColormap(CLASS_GREYS), "norm": BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3)}
        pairs(figure, folder, shown, lambda axis, one, place: token_map(axis, kinds[one.setting][place][1], **style))
        figure.legend(handles=legend, loc="outside lower center", ncols=3)

    parts = []
    for one in planned:
        for row, place in zip(one.rows, one.places, strict=True):
            shades = [to_rgba(CLASS_GREYS[k]) for k in kinds[one.setting][place][0]]
            parts.append((f"{one.setting}, reward {row['reward']:.2f}", one.tokens.plan_texts[place], shades))
    no_plans = reason or (None if planned else "no setting draws after a plan")
    return [
        make(figures, image, reason, grid_size(shown), draw),
        draw_plans(figures, text, no_plans, parts, legend=legend),
    ]
