"""The whole set of numbers: what it holds, what it says of planted relations, and of tables that tell little."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from egrpo.analysis.findings import NOT_SUPPORTED, SUPPORTED, UNCLEAR, judge, overall
from egrpo.analysis.statistics import compute
from tests.analysis import synthetic


def estimate(low: float | None, high: float | None) -> dict:
    return {"value": None if low is None else (low + high) / 2, "low": low, "high": high}


def test_verdict_follows_from_the_interval() -> None:
    assert judge(estimate(-0.5, -0.2), -1, 0.1) == SUPPORTED
    assert judge(estimate(-0.5, -0.2), 1, 0.1) == NOT_SUPPORTED
    assert judge(estimate(-0.5, 0.2), -1, 0.1) == UNCLEAR
    assert judge(estimate(-0.09, -0.02), -1, 0.1) == NOT_SUPPORTED  # too small to matter
    assert judge(estimate(-0.09, -0.02), -1, 0.0) == SUPPORTED
    assert judge(estimate(None, None), -1, 0.1) == UNCLEAR
    verdicts = [[SUPPORTED, SUPPORTED], [SUPPORTED, NOT_SUPPORTED], [UNCLEAR, NOT_SUPPORTED], [UNCLEAR], []]
    told = [overall([{"verdict": verdict} for verdict in group]) for group in verdicts]
    assert told == [SUPPORTED, UNCLEAR, NOT_SUPPORTED, UNCLEAR, UNCLEAR]


def test_planted_relations_are_found_where_they_are() -> None:
    table = synthetic.records(prompts=40, plans=4, images=4, settings=("base", "base_cot", "grpo"))
    study = synthetic.study(training_pairs=[("base_cot", "grpo")])
    found = compute(table, study, synthetic.reader(table))
    first, second, third = found["findings"]
    assert [claim["part"] for claim in first["claims"]] == ["What plans do"] * 2 + ["What training does"] * 3
    assert first["because"].endswith(f"What training does: {overall(first['claims'][2:])}.")
    assert second["verdict"] == SUPPORTED and second["verdict_within_prompts"] != SUPPORTED  # prompt difficulty alone
    assert third["verdict_within_prompts"] == SUPPORTED
    base_cot = found["settings"]["base_cot"]
    assert base_cot["couplings"]["image_entropy_std"]["between"]["pearson"]["high"] < -0.5
    assert abs(base_cot["couplings"]["image_entropy_std"]["within"]["pearson"]["value"]) < 0.15
    change = {(d["from"], d["to"]): d["change"] for d in found["differences"]}
    trained = change["base_cot", "grpo"]
    assert trained["guided_entropy_mean"]["value"] == pytest.approx(-0.08, abs=0.01)
    assert trained["reward"]["low"] > 0
    assert change["base", "base_cot"]["text_entropy_mean"]["reason"] == "not measured for any prompt"
    assert found["equal_images"] == 4
    assert found["stratified"]["grpo"][0]["quantile"] == 0.25
    assert found["stratified"]["grpo"][0]["images"] == 160


def test_same_numbers_again_and_with_rows_in_another_order() -> None:
    table = synthetic.records(settings=("base", "base_cot"))
    first = compute(table, synthetic.study(), synthetic.reader(table))
    shuffled = table.sample(frac=1, random_state=1)
    again = compute(shuffled, synthetic.study(), synthetic.reader(table))
    keys = ("settings", "differences")
    for key in keys:
        left, right = (json.loads(json.dumps(part[key])) for part in (first, again))
        assert json.dumps(_rounded(left)) == json.dumps(_rounded(right))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 9) + 0.0 if isinstance(value, float) else value


DEGENERATE = {
    "one prompt": lambda t: t[t["prompt_index"] == 0],
    "two prompts": lambda t: t[t["prompt_index"] < 2],
    "constant reward": lambda t: t.assign(reward=0.5),
    "constant entropies": lambda t: t.assign(guided_entropy_std=0.1, image_entropy_mean=0.2),
    "one image a plan": lambda t: t[t["image_index"] == 0],
    "one image a prompt": lambda t: t[(t["image_index"] == 0) & (t["plan_index"] == 0)],
    "one image": lambda t: t.iloc[[0]],
    "one setting": lambda t: t[t["setting"] == "grpo"],
    "no plans": lambda t: t[t["setting"] == "base"],
    "a judge that never applies": lambda t: t.assign(**{"judge/strict": np.nan}),
    "prompts that differ": lambda t: t.assign(prompt_index=t["prompt_index"] + 100 * (t["setting"] == "grpo")),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_tables_that_tell_little_give_null_with_reasons(name: str) -> None:
    table = DEGENERATE[name](synthetic.records(prompts=4, plans=2, images=2, settings=("base", "grpo")))
    found = compute(table, replace(synthetic.study(), resamples=100))
    json.dumps(found, allow_nan=False)
    missing = [e for e in _estimates(found) if e["value"] is None]
    assert missing and all(e.get("reason") for e in missing)
    assert all(e.get("reason") for e in _estimates(found) if e["low"] is None)


def _estimates(value: object) -> list[dict]:
    if isinstance(value, dict):
        own = [value] if {"value", "low", "high"} <= value.keys() else []
        return own + [e for inner in value.values() for e in _estimates(inner)]
    return [e for inner in value for e in _estimates(inner)] if isinstance(value, list) else []


def test_tables_that_do_not_fit_are_refused() -> None:
    table = synthetic.records(prompts=2)
    for broken, told in (
        (table.drop(columns="reward"), "lacks the columns reward"),
        (table.iloc[:0], "is empty"),
        (table.assign(setting="other"), "settings other"),
        (table.assign(reward=np.nan), "have no reward"),
    ):
        with pytest.raises(ValueError, match=told):
            compute(broken, synthetic.study())
    with pytest.raises(ValueError, match='no setting "x"'):
        synthetic.study(baseline="x")
