"""Shares of variance between prompts, between plans of a prompt, and within a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from egrpo.analysis.resampling import Bootstrap, Estimate

LEVELS = ("prompt", "plan", "image")  # between prompts, between plans of a prompt, within a plan


def variance_shares(frame: pd.DataFrame, column: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Components of variance of a nested design, unbalanced or not, and their shares, with intervals over prompts.

    Source: analysis-of-variance estimators for nested classifications, Searle, Casella & McCulloch, Variance
    Components (1992). The components are unbiased and may come out below 0; shares count those as
    0, and `truncated` names them.

    Without plans the plan's component is null; with one image a plan, plan and image cannot be told apart and the
    plan's component is null, the image's holding both.
    """
    told = frame.dropna(subset=[column])
    if not len(told):
        return _nothing(f"{column} is empty: it was not measured for these images")
    if np.ptp(told[column]) <= 1e-12 * max(1.0, float(told[column].abs().max())):
        return _nothing(f"{column} is the same for all images")
    if told["prompt_index"].nunique() < 2:
        return _nothing("one prompt: variance between prompts is not defined")
    prompts, missing = _sums(told, column)
    if prompts["n"].sum() <= prompts["plans"].sum():
        return _nothing("one image a prompt: nothing varies within prompts")
    values = _components(np.ones((1, len(prompts))), prompts)[:, 0]
    both = bootstrap.estimates(
        [*values, *_shares(values[:, None])[:, 0]],
        lambda counts: (lambda parts: np.concatenate([parts, _shares(parts)]))(_components(counts, prompts)),
        len(prompts),
    )
    if missing:
        both[1] = both[4] = Estimate(None, reason=missing)
    return {
        "components": {name: e.to_json() for name, e in zip(LEVELS, both[:3], strict=True)},
        "shares": {name: e.to_json() for name, e in zip(LEVELS, both[3:], strict=True)},
        "truncated": [name for name, value in zip(LEVELS, values, strict=True) if value < 0],
    }


def _sums(told: pd.DataFrame, column: str) -> tuple[pd.DataFrame, str | None]:
    """What the sums of squares of any resample are made of, one row a prompt; and why plans are not told apart."""
    centred = told.assign(value=told[column] - told[column].mean())
    plan_keys = ["prompt_index", "plan_index"]
    per_plan = centred.groupby(plan_keys)["value"].agg(["size", "sum"])
    missing = None
    if (per_plan["size"] == 1).all():
        missing = "one image a plan: plan and image cannot be told apart"
    elif per_plan.groupby("prompt_index").size().max() == 1:
        missing = "one plan a prompt"
    if missing:
        plan_keys = ["prompt_index"]
        per_plan = centred.groupby(plan_keys)["value"].agg(["size", "sum"])
    deviation = centred["value"] - centred.groupby(plan_keys)["value"].transform("mean")
    per_prompt = centred.groupby("prompt_index")["value"].agg(n="size", total="sum")
    by_prompt = per_plan.groupby("prompt_index")
    per_prompt["plans"] = by_prompt.size()
    per_prompt["within"] = (deviation**2).groupby(centred["prompt_index"]).sum()
    per_prompt["plan_squares"] = (per_plan["sum"] ** 2 / per_plan["size"]).groupby("prompt_index").sum()
    per_prompt["size_squares"] = (per_plan["size"] ** 2).groupby("prompt_index").sum()
    return per_prompt, missing


def _components(counts: np.ndarray, p: pd.DataFrame) -> np.ndarray:
    """Prompts drawn counts [B, P] times -> variance of (prompt, plan, image) [3, B]; plan 0 where plans are not told.

    A prompt that is drawn twice counts as two prompts.
    """
    n, plans, total = (p[name].to_numpy(float) for name in ("n", "plans", "total"))
    within, plan_squares, size_squares = (
        p[name].to_numpy(float) for name in ("within", "plan_squares", "size_squares")
    )
    images, cells, drawn = counts @ n, counts @ plans, counts.sum(axis=1)
    image = (counts @ within) / (images - cells)
    prompt_squares = total**2 / n
    plan_df = cells - drawn
    plan_weight = images - counts @ (size_squares / n)
    plan = np.where(plan_df > 0, counts @ (plan_squares - prompt_squares) - plan_df * image, 0.0)
    plan = np.where(plan_df > 0, plan / np.where(plan_df > 0, plan_weight, 1.0), 0.0)
    between = counts @ prompt_squares - (counts @ total) ** 2 / images
    plan_in_prompt = counts @ (size_squares / n) - counts @ size_squares / images
    between = between - (drawn - 1) * image - plan_in_prompt * plan
    return np.stack([between / (images - counts @ n**2 / images), plan, image])


def _shares(components: np.ndarray) -> np.ndarray:
    """[3, B] -> shares [3, B]; components below 0 count as 0."""
    kept = components.clip(min=0)
    total = kept.sum(axis=0)
    return np.where(total > 0, kept / np.where(total > 0, total, 1.0), np.nan)


def _nothing(reason: str) -> dict[str, Any]:
    empty = {name: Estimate(None, reason=reason).to_json() for name in LEVELS}
    return {"components": empty, "shares": empty, "truncated": []}
