"""All numbers of the study, from its table: what `statistics.json` holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from egrpo.analysis import diversity as div
from egrpo.analysis.correlation import SCOPES, coupling, partial
from egrpo.analysis.findings import judge_findings
from egrpo.analysis.resampling import LEVEL, Bootstrap, Estimate
from egrpo.analysis.study import StudyDescription, TokenReader
from egrpo.analysis.variance import variance_shares
from egrpo.base.errors import UserError

KEYS = ("setting", "prompt", "prompt_index", "plan", "plan_index", "image_index", "file", "reward")
MOMENTS = ("mean", "std")
KINDS = ("guided", "image", "text")
PREDICTORS = tuple(f"{kind}_entropy_{moment}" for kind in KINDS for moment in MOMENTS)
CUTS = (0.25, 0.5, 0.75, 1.0)
DIVERSITY = ("vendi_equal", "vendi", "vendi_within_plan", "plans_distinct")


def check_records(records: pd.DataFrame, study: StudyDescription) -> None:
    """Raises UserError where the table cannot be what the study describes."""
    missing = [name for name in (*KEYS, *PREDICTORS) if name not in records]
    if missing:
        raise UserError(f"the table of images lacks the columns {', '.join(missing)}; draw the study again")
    if not len(records):
        raise UserError("the table of images is empty; draw at least one image before the report")
    unknown = sorted(set(records["setting"]) - set(study.settings))
    if unknown:
        raise UserError(f"the table holds the settings {', '.join(unknown)}, which the study does not name; name them")
    if records["reward"].isna().any():
        raise UserError(f"{records['reward'].isna().sum()} images have no reward; measure them before the report")


def present(records: pd.DataFrame, study: StudyDescription) -> list[str]:
    """The settings that there are images of, in the study's order."""
    return [name for name in study.settings if (records["setting"] == name).any()]


def compute(
    records: pd.DataFrame,
    study: StudyDescription,
    tokens: TokenReader | None = None,
    embeddings: np.ndarray | None = None,
) -> dict[str, Any]:
    """Every statistic, with None and a reason where it cannot be told. docs/analysis.md says what each one is.

    Args:
        records, study, tokens, embeddings: as `egrpo.analysis.report.write_report`.

    Raises:
        UserError: the table does not fit the study (see `check_records`).
    """
    check_records(records, study)
    order = ["setting", "prompt_index", "plan_index", "image_index"]  # shards come in any order; numbers do not change
    records = records.reset_index(drop=True).sort_values(order)
    bootstrap = Bootstrap(study.resamples, study.seed)
    names = present(records, study)
    frames = {name: records[records["setting"] == name] for name in names}
    diversity, source = _diversity(frames, study, tokens, embeddings)
    pairs = _pairs(study)
    std = f"{study.entropy}_entropy_std"
    out: dict[str, Any] = {
        "level": LEVEL,
        "resamples": study.resamples,
        "seed": study.seed,
        "entropy": study.entropy,
        "stratum_quantile": study.stratum_quantile,
        "missing_settings": [name for name in study.settings if name not in names],
        "guided_equals_conditional": _same_entropies(records),
        "diversity_source": source,
        "settings": {name: _setting(frame, std, bootstrap) for name, frame in frames.items()},
        "stratified": {name: stratified(frame, std, study, bootstrap) for name, frame in frames.items()},
        "differences": [difference(records, diversity, pair, bootstrap) for pair in pairs],
    }
    for name in names:
        table = diversity[name]
        out["settings"][name]["diversity"] = {
            column: bootstrap.mean(table[column].to_numpy()).to_json() for column in DIVERSITY
        }
    out["equal_images"] = _equal_images(frames)
    out["findings"] = judge_findings(out, study)
    return out


def _setting(frame: pd.DataFrame, std: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """What one setting's images say by themselves."""
    columns = ["reward", *PREDICTORS, *_parts(frame)]
    by_prompt = frame.groupby("prompt_index")[columns].mean()
    partials = {
        f"text_entropy_mean given {std}": partial(frame, "text_entropy_mean", "reward", [std], "all", bootstrap),
        "text_entropy_mean given prompt": partial(frame, "text_entropy_mean", "reward", [], "within", bootstrap),
        f"text_entropy_mean given prompt, {std}": partial(
            frame, "text_entropy_mean", "reward", [std], "within", bootstrap
        ),
    }
    return {
        "images": len(frame),
        "prompts": int(frame["prompt_index"].nunique()),
        "plans": len(frame.loc[frame["plan"] != ""].drop_duplicates(["prompt_index", "plan_index"])),
        "means": {name: bootstrap.mean(by_prompt[name].to_numpy()).to_json() for name in columns},
        "image_std": {name: _spread(frame[name]) for name in columns},
        "couplings": {x: {s: coupling(frame, x, "reward", s, bootstrap) for s in SCOPES} for x in PREDICTORS},
        "parts": {y: {s: coupling(frame, std, y, s, bootstrap) for s in ("all", "within")} for y in _parts(frame)},
        "partial": partials,
        "variance": {
            name: variance_shares(frame, name, bootstrap) for name in ("reward", std.replace("_std", "_mean"), std)
        },
    }


def _parts(frame: pd.DataFrame) -> list[str]:
    """Columns of single rewards and judges."""
    return [name for name in frame.columns if name.startswith(("reward/", "judge/"))]


def _spread(column: pd.Series) -> float | None:
    """Standard deviation over images, unbiased; None with fewer than two."""
    value = column.std()
    return float(value) if np.isfinite(value) else None


def _same_entropies(records: pd.DataFrame) -> bool:
    """Whether nothing was guided, so that both kinds of image entropy are one."""
    return all(
        np.allclose(records[f"guided_entropy_{m}"], records[f"image_entropy_{m}"], atol=1e-6, equal_nan=True)
        for m in MOMENTS
    )


def stratified(frame: pd.DataFrame, std: str, study: StudyDescription, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Text entropy against reward among the images whose image-entropy std is at most a quantile of the setting's.

    Deviations within prompts are from the prompt's mean inside the stratum. The cut is the sample's and stays the same
    in all resamples.
    """
    out = []
    for quantile in sorted({study.stratum_quantile, *CUTS}):
        told = frame[frame[std].notna()]
        cut = float(told[std].quantile(quantile)) if len(told) else None
        inside = told if cut is None else told[told[std] <= cut]
        row = {s: coupling(inside, "text_entropy_mean", "reward", s, bootstrap) for s in ("all", "within")}
        out.append({"quantile": quantile, "cut": cut, "images": len(inside), **row})
    return out


def _pairs(study: StudyDescription) -> list[tuple[str, str]]:
    """The pairs that findings are judged by, then every other setting against the baseline; each pair once."""
    named = [(a, b) for a, b in [*([study.cot_pair] if study.cot_pair else []), *study.training_pairs]]
    others = [(study.baseline, name) for name in study.settings if name != study.baseline]
    return list(dict.fromkeys([*named, *((a, b) for a, b in others if (b, a) not in named)]))


def difference(
    records: pd.DataFrame, diversity: dict[str, pd.DataFrame], pair: tuple[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Second setting minus first, paired by prompt: mean over prompts of the difference of the prompt's means."""
    columns = ["reward", *PREDICTORS, *_parts(records)]
    tables = []
    for name in pair:
        table = records[records["setting"] == name].groupby("prompt_index")[columns].mean()
        tables.append(table.join(diversity[name]) if name in diversity else table)
    shared = tables[0].index.intersection(tables[1].index)
    out: dict[str, Any] = {"from": pair[0], "to": pair[1], "prompts": len(shared), "change": {}}
    absent = [name for name in pair if name not in diversity]
    for column in [*columns, *DIVERSITY]:
        if absent:
            estimate = Estimate(None, reason=f"no images of {absent[0]}")
        elif not len(shared):
            estimate = Estimate(None, reason="the settings share no prompt")
        else:
            estimate = bootstrap.mean((tables[1].loc[shared, column] - tables[0].loc[shared, column]).to_numpy())
        out["change"][column] = estimate.to_json()
    return out


def _equal_images(frames: dict[str, pd.DataFrame]) -> int:
    return div.equal_size([int(frame.groupby("prompt_index").size().min()) for frame in frames.values()])


def _diversity(
    frames: dict[str, pd.DataFrame],
    study: StudyDescription,
    tokens: TokenReader | None,
    embeddings: np.ndarray | None,
) -> tuple[dict[str, pd.DataFrame], str]:
    """Diversity of every setting, one row a prompt, and of what it is."""
    size = _equal_images(frames)
    if embeddings is None and tokens is None:
        plans = {name: frame.groupby("prompt_index")["plan"] for name, frame in frames.items()}
        empty = {
            name: pd.DataFrame(np.nan, index=groups.first().index, columns=list(DIVERSITY))
            for name, groups in plans.items()
        }
        return empty, "neither embeddings nor image tokens were at hand"
    out = {}
    for name, frame in frames.items():
        if embeddings is not None:
            kernels = div.kernels(np.asarray(embeddings)[frame.index.to_numpy()], frame)
        else:
            assert tokens is not None
            kernels = _code_kernels(name, frame, tokens)
        out[name] = div.diversity_table(frame, kernels, size, study.seed)
    return out, "image embeddings" if embeddings is not None else "histograms of image tokens"


def _code_kernels(name: str, frame: pd.DataFrame, tokens: TokenReader) -> dict[int, np.ndarray]:
    out: dict[int, np.ndarray] = {}
    for prompt, part in frame.groupby("prompt_index"):
        codes = tokens(name, int(prompt)).codes
        if len(codes) != len(part):
            raise UserError(
                f"setting {name}, prompt {prompt}: the table has {len(part)} images, the token file {len(codes)}; "
                "draw this prompt again"
            )
        out |= div.kernels(div.histograms(codes), part)
    return out
