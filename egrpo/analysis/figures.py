"""Figures of the table of images and of its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egrpo.analysis.correlation import SCOPES
from egrpo.analysis.study import StudyDescription
from egrpo.analysis.style import COLUMN, HATCHES, MARKERS, Drawn, colour, legend_outside, look, make, zero_line
from egrpo.analysis.variance import LEVELS

Numbers = Mapping[str, Any]
SCOPE_NAMES = {"all": "all images", "between": "between prompts", "within": "within prompts"}
LEVEL_NAMES = {"prompt": "between prompts", "plan": "between plans", "image": "within a plan"}
QUANTITIES = {
    "guided_entropy_mean": "mean image entropy",
    "guided_entropy_std": "std of image entropy",
    "image_entropy_mean": "mean image entropy",
    "image_entropy_std": "std of image entropy",
    "text_entropy_mean": "mean plan entropy",
    "text_entropy_std": "std of plan entropy",
    "reward": "reward",
    "vendi_equal": "Vendi score",
}
ROW = 0.2  # inches a setting takes in a list of settings


def table_figures(folder: Path, records: pd.DataFrame, numbers: Numbers, study: StudyDescription) -> list[Drawn]:
    """Draws every figure that the table alone gives, into `folder`."""
    frames = {name: records[records["setting"] == name] for name in numbers["settings"]}
    entropy = study.entropy
    drawn = [_distributions(folder, frames, entropy)]
    drawn.append(_forest(folder, numbers, entropy))
    for x in (f"{entropy}_entropy_std", f"{entropy}_entropy_mean", "text_entropy_mean"):
        drawn.append(_coupling(folder, frames, numbers, x))
    drawn += [_stratified(folder, frames, numbers, study), _differences(folder, numbers, study)]
    return [*drawn, _variance(folder, numbers, entropy)]


def _rows_of_settings(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)


def _distributions(folder: Path, frames: Mapping[str, pd.DataFrame], entropy: str) -> Drawn:
    columns = [f"{entropy}_entropy_mean", f"{entropy}_entropy_std", "text_entropy_mean"]
    columns = [c for c in columns if any(frame[c].notna().any() for frame in frames.values())]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
        for axis, column in zip(axes, columns, strict=True):
            for place, frame in enumerate(frames.values()):
                values = frame[column].dropna().to_numpy()
                if not len(values):
                    axis.text(0.02, place, "no plans", va="center", color="0.4", transform=axis.get_yaxis_transform())
                    continue
                body = axis.violinplot(values, [place], orientation="horizontal", widths=0.85, showextrema=False)
                for part in body["bodies"]:  # type: ignore[attr-defined]
                    part.set(facecolor="0.82", edgecolor="0.3", alpha=1, linewidth=0.5)
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
                axis.plot([low, high], [place, place], color="black", linewidth=2, solid_capstyle="butt")
                axis.plot(middle, place, "o", color="white", markeredgecolor="black", markersize=3.5)
            _rows_of_settings(axis, list(frames))
            axis.set_xlabel(QUANTITIES[column])

    about = Drawn(
        "distributions",
        "Entropy of images and plans",
        "Each image is one value. Bars span the quartiles, dots are medians.",
    )
    height = len(columns) * (0.45 + 1.4 * ROW * len(frames))
    return make(folder, about, None if columns else "no entropy was recorded", (COLUMN, height), draw)


def _interval(axis: Axes, estimate: Numbers, place: float, filled: bool = True, **style: Any) -> bool:
    """A point with its interval; nothing where there is no value."""
    if estimate["value"] is None:
        return False
    if estimate["low"] is not None:
        axis.plot([estimate["low"], estimate["high"]], [place, place], color=style["color"], linewidth=0.9)
    face = style["color"] if filled else "white"
    axis.plot(estimate["value"], place, markerfacecolor=face, markersize=4, linestyle="none", **style)
    return True


def _forest(folder: Path, numbers: Numbers, entropy: str) -> Drawn:
    columns = [f"{entropy}_entropy_std", f"{entropy}_entropy_mean", "text_entropy_mean"]
    names = list(numbers["settings"])
    found = any(
        numbers["settings"][name]["couplings"][x][scope]["pearson"]["value"] is not None
        for name in names for x in columns for scope in SCOPES
    )  # fmt: skip

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(columns), 1, sharex=True)
        for axis, x in zip(axes, columns, strict=True):
            for place, name in enumerate(names):
                told = False
                for step, scope in enumerate(SCOPES):
                    estimate = numbers["settings"][name]["couplings"][x][scope]["pearson"]
                    style = {"color": colour(step), "marker": MARKERS[step], "label": SCOPE_NAMES[scope]}
                    told |= _interval(axis, estimate, place + 0.26 * (step - 1), filled=scope != "within", **style)
                if not told:
                    axis.text(0.03, place, "not told", va="center", color="0.4")
            zero_line(axis)
            _rows_of_settings(axis, names)
            axis.set_title(f"reward against {QUANTITIES[x]}", loc="left")
            axis.set_xlim(-1.02, 1.02)
        axes[-1].set_xlabel("Pearson's r, 95 % interval")
        legend_outside(figure, axes, 3)

    about = Drawn(
        "correlations",
        "Where the coupling of entropy and reward lies",
        "Over all images, between the prompts' means, and within prompts (deviations from the prompt's mean), with "
        "intervals bootstrapped over prompts. What shows between prompts only may be prompt difficulty.",
    )
    height = 0.6 + len(columns) * (0.3 + 2 * ROW * len(names))
    return make(folder, about, None if found else "no correlation could be computed", (COLUMN, height), draw)


def _coupling(folder: Path, frames: Mapping[str, pd.DataFrame], numbers: Numbers, x: str) -> Drawn:
    named = {name: frame.dropna(subset=[x]) for name, frame in frames.items()}
    named = {name: frame for name, frame in named.items() if len(frame)}
    rows = -(-len(named) // 2)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
        together = pd.concat(named.values())
        for axis in axes[len(named) :]:
            axis.axis("off")
        for axis in axes[len(named) - 2 : len(named)]:
            axis.tick_params(labelbottom=True)
        for axis, (name, frame) in zip(axes, named.items(), strict=False):
            _density(axis, frame[x].to_numpy(), frame["reward"].to_numpy(), together[x], together["reward"])
            told = numbers["settings"][name]["couplings"][x]
            for scope, line in (("all", "-"), ("within", "--")):
                slope = told[scope]["slope"]["value"]
                if slope is not None:
                    ends = np.quantile(frame[x], [0.01, 0.99])
                    fit = frame["reward"].mean() + slope * (ends - frame[x].mean())
                    axis.plot(ends, fit, line, color="black", linewidth=1.3, label=f"fit, {SCOPE_NAMES[scope]}")
            r = {scope: told[scope]["pearson"]["value"] for scope in ("all", "within")}
            label = ", ".join(
                f"{'r' if s == 'all' else 'within'} {v:.2f}".replace("-", "−") for s, v in r.items() if v is not None
            )
            axis.set_title(f"{name}\n{label}" if label else name)
        figure.supxlabel(QUANTITIES[x], fontsize=7)
        figure.supylabel("reward", fontsize=7)
        legend_outside(figure, axes, 2, "upper")

    about = Drawn(
        f"reward_{x}",
        f"Reward against {QUANTITIES[x]}",
        "Darker cells hold more images. Lines are least-squares fits, the dashed one to deviations from the prompts' "
        "means.",
    )
    return make(folder, about, None if named else f"{QUANTITIES[x]}: not recorded", (COLUMN, 0.6 + 1.35 * rows), draw)


def _density(axis: Axes, x: np.ndarray, y: np.ndarray, all_x: pd.Series, all_y: pd.Series) -> None:
    """Counts of images in hexagons over the range of all settings; points where there is no range."""
    extent = (all_x.min(), all_x.max(), all_y.min(), all_y.max())
    if extent[0] == extent[1] or extent[2] == extent[3]:
        axis.plot(x, y, "o", color="0.4")
        return
    axis.hexbin(x, y, gridsize=(16, 11), extent=extent, cmap="Greys", mincnt=1, vmin=-1.5, linewidths=0.1)


def _stratified(folder: Path, frames: Mapping[str, pd.DataFrame], numbers: Numbers, study: StudyDescription) -> Drawn:
    names = [name for name, setting in numbers["settings"].items() if setting["plans"]]
    std, quantile = f"{study.entropy}_entropy_std", study.stratum_quantile

    def draw(figure: Figure) -> None:
        top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.1, 1])[:, 0]
        panels = top.subplots(1, 2, sharey=True)
        for axis, scope in zip(panels, ("all", "within"), strict=True):
            for place, name in enumerate(names):
                shift = 0.03 * (place - (len(names) - 1) / 2)
                _over_cuts(axis, numbers["stratified"][name], scope, name, shift, list(frames).index(name))
            axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
            axis.set_title(SCOPE_NAMES[scope])
            axis.set_xticks([0.25, 0.5, 0.75, 1.0])
        top.supxlabel("images up to this quantile of std", fontsize=7)
        panels[0].set_ylabel("r of reward and\nplan entropy")
        axis = bottom.subplots()
        for name in names:
            cut = next(r for r in numbers["stratified"][name] if r["quantile"] == quantile)
            frame = frames[name][frames[name][std] <= cut["cut"]]
            style = look(list(frames).index(name))
            x, y = frame["text_entropy_mean"], frame["reward"]
            axis.plot(x, y, **{**style, "linestyle": "none"}, markersize=2, alpha=0.5, markeredgewidth=0)
            slope = cut["all"]["slope"]["value"]
            if slope is not None:
                ends = np.array([x.min(), x.max()])
                axis.plot(ends, y.mean() + slope * (ends - x.mean()), **{**style, "marker": None}, label=name)
        axis.set(xlabel=f"mean plan entropy, images up to quantile {quantile:g}", ylabel="reward")
        legend_outside(figure, panels, 3)

    about = Drawn(
        "stratified",
        "Plan entropy and reward among images of low image-entropy std",
        f"Above: the correlation among the images up to a quantile of the setting's image-entropy std (1 = all), with "
        f"95 % intervals. Below: the images up to quantile {quantile:g}, with least-squares fits.",
    )
    return make(folder, about, None if names else "no setting draws after a plan", (COLUMN, 3.9), draw)


def _over_cuts(axis: Axes, rows: Sequence[Numbers], scope: str, name: str, shift: float, order: int) -> None:
    told = [row for row in rows if row[scope]["pearson"]["value"] is not None]
    x = np.array([row["quantile"] for row in told]) + shift
    style = look(order)
    for at, row in zip(x, told, strict=True):
        estimate = row[scope]["pearson"]
        if estimate["low"] is not None:
            axis.plot([at, at], [estimate["low"], estimate["high"]], color=style["color"], linewidth=0.8)
    axis.plot(x, [row[scope]["pearson"]["value"] for row in told], **style, label=name)  # type: ignore[arg-type]


def _differences(folder: Path, numbers: Numbers, study: StudyDescription) -> Drawn:
    columns = ["reward", f"{study.entropy}_entropy_mean", "text_entropy_mean", "vendi_equal"]
    told = [d for d in numbers["differences"] if any(d["change"][c]["value"] is not None for c in columns)]
    columns = [c for c in columns if any(d["change"][c]["value"] is not None for d in told)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
        for axis, column in zip(axes, columns, strict=True):
            for place, row in enumerate(told):
                if not _interval(axis, row["change"][column], place, color="black", marker="o"):
                    axis.text(0.5, place, "not told", va="center", color="0.4", transform=axis.get_yaxis_transform())
            zero_line(axis)
            _rows_of_settings(axis, [f"{row['to']} - {row['from']}" for row in told])
            axis.set_xlabel(f"change of {QUANTITIES[column]}")

    about = Drawn(
        "differences",
        "Differences between settings",
        f"Paired by prompt, mean over prompts with 95 % interval. Vendi scores are of {numbers['equal_images']} images "
        "each.",
    )
    height = len(columns) * (0.45 + ROW * max(1, len(told)))
    return make(folder, about, None if told else "there is no second setting to compare with", (COLUMN, height), draw)


def _variance(folder: Path, numbers: Numbers, entropy: str) -> Drawn:
    columns = ["reward", f"{entropy}_entropy_mean", f"{entropy}_entropy_std"]
    names = list(numbers["settings"])
    shares = {
        (name, c): [numbers["settings"][name]["variance"][c]["shares"][level]["value"] for level in LEVELS]
        for name in names for c in columns
    }  # fmt: skip

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(columns), 1, sharex=True)
        for axis, column in zip(axes, columns, strict=True):
            for place, name in enumerate(names):
                left = 0.0
                for level, hatch, grey, value in zip(
                    LEVELS, HATCHES, ("0.55", "0.9", "1"), shares[name, column], strict=True
                ):
                    style = {"facecolor": grey, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}
                    axis.barh(place, value or 0, 0.65, left=left, label=LEVEL_NAMES[level], **style)  # type: ignore[arg-type]
                    left += value or 0
                if not left:
                    axis.text(0.02, place, "not told", va="center", color="0.4")
            _rows_of_settings(axis, names)
            axis.set_title(QUANTITIES[column], loc="left")
        axes[-1].set(xlabel="share of variance", xlim=(0, 1))
        legend_outside(figure, axes, 3)

    about = Drawn(
        "variance",
        "What decides: the prompt, the plan, or the drawing",
        "Shares of unbiased components of variance. Where a setting has no plans, or one image a plan, all that varies "
        "within prompts counts as within a plan.",
    )
    found = any(value is not None for row in shares.values() for value in row)
    height = 0.55 + len(columns) * (0.25 + 1.2 * ROW * len(names))
    return make(folder, about, None if found else "variance could not be divided", (COLUMN, height), draw)
