"""The article's three findings, each with a verdict that follows from intervals alone.

Findings in the words of the abstract of EG-GRPO (arXiv 2604.02355). Every finding is taken apart into claims of one
number and one direction; docs/analysis.md says how they are judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from egrpo.analysis.study import StudyDescription

SUPPORTED, NOT_SUPPORTED, UNCLEAR = "supported", "not supported", "unclear"
ARTICLE_SLOPE = -1.049  # of reward against the standard deviation of image entropy
SMALL_CORRELATION = 0.1  # Cohen, Statistical Power Analysis for the Behavioral Sciences (1988): a small effect
SMALL_CHANGE = 0.1  # of a difference between settings, in standard deviations over the first one's images

QUOTES = (
    "CoT expands the generative exploration space, while RL contracts it toward high-reward regions",
    "final reward is strongly negatively correlated with both the mean and variance of image-token entropy",
    "the entropy of the textual CoT directly governs downstream image quality, with lower-entropy CoTs leading to "
    "better generations",
)
Claim = dict[str, Any]


def judge(estimate: Mapping[str, Any], direction: int, margin: float) -> str:
    """A claim's verdict: does the 95 % interval lie on the claimed side of 0?

    Not supported: it lies on the other side, or wholly within +-margin, where an effect is too small to matter.
    Unclear: anything else, and what has no interval.

    Args:
        estimate: value, low, high.
        direction: 1 or -1, the claimed sign.
        margin: in the estimate's unit, 0 or more.
    """
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return UNCLEAR
    if -margin < low and high < margin:
        return NOT_SUPPORTED
    ahead, behind = (low > 0, high < 0) if direction > 0 else (high < 0, low > 0)
    return SUPPORTED if ahead else NOT_SUPPORTED if behind else UNCLEAR


def overall(claims: Sequence[Claim]) -> str:
    """Supported if every claim is; not supported if at least one claim is not and none is supported; else unclear."""
    verdicts = {claim["verdict"] for claim in claims}
    if verdicts == {SUPPORTED}:
        return SUPPORTED
    return NOT_SUPPORTED if NOT_SUPPORTED in verdicts and SUPPORTED not in verdicts else UNCLEAR


def judge_findings(statistics: Mapping[str, Any], study: StudyDescription) -> list[dict[str, Any]]:
    """The three findings, from what `egrpo.analysis.statistics.compute` has computed."""
    return [
        _finding(0, _exploration(statistics, study), [], _exploration_caution(study)),
        _finding(1, _reward_claims(statistics, study, "all"), _reward_claims(statistics, study, "within")),
        _finding(2, _text_claims(statistics, study, "all"), _text_claims(statistics, study, "within")),
    ]


def _finding(index: int, claims: list[Claim], within: list[Claim], caution: str | None = None) -> dict[str, Any]:
    verdict, inside = overall(claims), overall(within) if within else None
    parts = dict.fromkeys(claim["part"] for claim in claims if "part" in claim)
    of_parts = {part: overall([claim for claim in claims if claim["part"] == part]) for part in parts}
    told = "".join(f" {part}: {of}." for part, of in of_parts.items())
    return {
        "number": index + 1,
        "article": QUOTES[index],
        "verdict": verdict,
        "because": _because(claims) + told,
        "claims": claims,
        "verdict_within_prompts": inside,
        "claims_within_prompts": within,
        "caution": caution or _split_caution(verdict, inside, within),
    }


def _because(claims: Sequence[Claim]) -> str:
    if not claims:
        return "Nothing in this study tells."
    count = {v: sum(claim["verdict"] == v for claim in claims) for v in (SUPPORTED, NOT_SUPPORTED, UNCLEAR)}
    told = ", ".join(f"{number} {verdict}" for verdict, number in count.items() if number)
    return f"Of {len(claims)} claim{'s' * (len(claims) != 1)}: {told}."


def _split_caution(verdict: str, inside: str | None, within: Sequence[Claim]) -> str:
    """What the split into between and within prompts adds to a verdict over all images."""
    told = _because(within) if within else ""
    if inside == SUPPORTED:
        return f"Within prompts, where prompt difficulty plays no part, it is supported too. {told}"
    if inside == NOT_SUPPORTED:
        tail = (
            "What is seen over all images then lies between prompts: hard prompts may have both high entropy and low "
            "reward, and neither need cause the other."
        )
        return f"Within prompts it is not supported. {told} {tail if verdict == SUPPORTED else ''}".strip()
    if inside == UNCLEAR:
        tail = "Prompt difficulty may explain what is seen over all images." if verdict == SUPPORTED else ""
        return f"Within prompts it is unclear. {told} {tail}".strip()
    return "Nothing in this study tells of single prompts."


def _exploration_caution(study: StudyDescription) -> str:
    roles = [
        "No pair of settings with and without plans was named." if study.cot_pair is None else "",
        "No pair of settings before and after training was named." if not study.training_pairs else "",
        "Differences are paired by prompt, so prompt difficulty plays no part. Mean token entropy is the uncertainty "
        "of drawing given a plan; the spread that different plans bring shows in the Vendi score alone.",
    ]
    return " ".join(role for role in roles if role)


def _exploration(statistics: Mapping[str, Any], study: StudyDescription) -> list[Claim]:
    """Finding 1: what plans change, and what training changes, paired by prompt."""
    entropy = f"{study.entropy}_entropy_mean"
    vendi = f"Vendi score of {statistics['equal_images']} images"
    claims: list[Claim] = []
    if study.cot_pair:
        pair = study.cot_pair
        claims.append(_change(statistics, pair, entropy, 1, f"plans raise mean image entropy: {_named(pair)}"))
        claims.append(_change(statistics, pair, "vendi_equal", 1, f"plans raise the {vendi}: {_named(pair)}"))
    for pair in study.training_pairs:
        claims.append(_change(statistics, pair, entropy, -1, f"training lowers mean image entropy: {_named(pair)}"))
        claims.append(_change(statistics, pair, "vendi_equal", -1, f"training lowers the {vendi}: {_named(pair)}"))
        claims.append(_change(statistics, pair, "reward", 1, f"training raises reward: {_named(pair)}"))
    plans = 2 if study.cot_pair else 0
    parts = ["What plans do"] * plans + ["What training does"] * (len(claims) - plans)
    return [claim | {"part": part} for claim, part in zip(claims, parts, strict=True)]


def _named(pair: tuple[str, str]) -> str:
    return f"{pair[1]} minus {pair[0]}"


def _change(statistics: Mapping[str, Any], pair: tuple[str, str], column: str, direction: int, text: str) -> Claim:
    found = next(d for d in statistics["differences"] if (d["from"], d["to"]) == pair)
    spread = statistics["settings"].get(pair[0], {}).get("image_std", {}).get(column)
    return _claim(text, found["change"][column], direction, SMALL_CHANGE * (spread or 0.0))


def _reward_claims(statistics: Mapping[str, Any], study: StudyDescription, scope: str) -> list[Claim]:
    """Finding 2: reward falls with mean and standard deviation of image entropy, in every setting."""
    claims = []
    for name, setting in statistics["settings"].items():
        for moment in ("mean", "std"):
            estimate = setting["couplings"][f"{study.entropy}_entropy_{moment}"][scope]["pearson"]
            text = f"{name}: reward against {moment} of image entropy, r"
            claims.append(_claim(text, estimate, -1, SMALL_CORRELATION))
    return claims


def _text_claims(statistics: Mapping[str, Any], study: StudyDescription, scope: str) -> list[Claim]:
    """Finding 3: reward falls with text entropy, among images of low image-entropy std and with that std held fixed."""
    std = f"{study.entropy}_entropy_std"
    given = {"all": f"text_entropy_mean given {std}", "within": f"text_entropy_mean given prompt, {std}"}[scope]
    claims = []
    for name, setting in statistics["settings"].items():
        if not setting["plans"]:
            continue
        rows = statistics["stratified"][name]
        row = next(r for r in rows if r["quantile"] == study.stratum_quantile)
        share = f"{100 * study.stratum_quantile:.0f} %"
        low = f"{name}: reward against plan entropy among the {share} of images with the lowest std of image entropy, r"
        claims.append(_claim(low, row[scope]["pearson"], -1, SMALL_CORRELATION))
        partial = setting["partial"][given]["partial"]
        claims.append(
            _claim(f"{name}: the same over all images, std held fixed, partial r", partial, -1, SMALL_CORRELATION)
        )
    return claims


def _claim(text: str, estimate: Mapping[str, Any], direction: int, margin: float) -> Claim:
    return {
        "claim": " ".join(text.split()),
        "expected": "above 0" if direction > 0 else "below 0",
        "estimate": dict(estimate),
        "margin": margin,
        "verdict": judge(estimate, direction, margin),
    }
