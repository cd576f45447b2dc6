"""How both sides grow: seconds of a step over images, of drawing over image tokens, scoring memory over vocabulary.

    python -m experiments.speed.growth                    # the shipped shapes model
    python -m experiments.speed.growth shape=small

Settings are those of `python -m experiments.speed`, growth_* among them. Prints the fit of a straight line for each
curve and side, and leaves growth.csv and growth.png.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from egrpo.algorithm import policy_loss
from egrpo.policy import JanusPolicy
from egrpo.types import Rollout, Segment
from experiments.speed import published
from experiments.speed.meter import Meter, memory_of, split_rollout
from experiments.speed.report import COLOURS, heading, told, write_csv
from experiments.speed.sides import Ours, Published, rollout, scores
from experiments.speed.subject import DEFAULTS, Subject, build, build_policy, configuration, read_records, read_settings

NAMES = ("published", "ours")


@dataclass(frozen=True)
class Curve:
    """Medians of both sides over one size."""

    name: str
    label: str  # of the size
    unit: str  # of the values
    sizes: list[int]
    values: dict[str, list[float]]  # by side

    def fit(self, side: str) -> tuple[float, float, float]:
        """Intercept, slope and R2 of a straight line; R2 of a line through equal values is 1."""
        x, y = np.array(self.sizes, dtype=float), np.array(self.values[side])
        slope, intercept = np.polyfit(x, y, 1)
        left, total = ((y - intercept - slope * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        return float(intercept), float(slope), float(1 - left / total) if total else 1.0


def measure_growth(settings: Any) -> list[Curve]:
    """All curves that the settings ask for; one with fewer than two sizes is left out."""
    curves = []
    if len(settings.growth_groups) > 1:
        curves.append(over_groups(build(settings)))
    if len(settings.growth_tokens) > 1:
        curves.append(over_tokens(build(settings)))
    if len(settings.growth_vocabularies) > 1:
        curves.append(over_vocabularies(settings))
    return curves


def over_groups(subject: Subject) -> Curve:
    """Seconds of a whole step over its images: prompts x group size."""

    def points(group: int) -> list[Callable[[], float]]:
        settings = OmegaConf.merge(subject.settings, {"group_size": group})
        sized = replace(subject, settings=settings, cfg=configuration(settings))
        ours = Ours(sized)
        theirs = Published(sized, ours.module.rewards.rewards)
        return [lambda: theirs.run(Meter(clock=settings.clock)), lambda: ours.run(Meter(clock=settings.clock))]

    values = measured(list(subject.settings.growth_groups), points, subject.settings.growth_repeats)
    images = [int(subject.settings.prompts) * group for group in subject.settings.growth_groups]
    return Curve("step over images", "images a step", "seconds", images, values)


def over_tokens(subject: Subject) -> Curve:
    """Seconds of drawing image tokens over their number, without plans and decoding."""
    settings, cfg = subject.settings, subject.cfg
    group, weight, temperature = int(cfg.rollout.group_size), float(cfg.rollout.cfg_weight), 1.0
    prompts = subject.records[: settings.prompts]

    def points(count: int) -> list[Callable[[], float]]:
        policy = subject.policy
        policy.num_image_tokens = count
        policy.model.model.vqmodel.quantize.quant_state_dims = [int(count**0.5)] * 2
        theirs = Published(subject, {})
        records = [record for record in prompts for _ in range(group)]

        def plain() -> float:
            meter = Meter(clock=settings.clock)
            policy.eval()
            rollout(policy, records, theirs.uniforms, weight, temperature, meter)
            return meter.seconds["image"]

        def ours() -> float:
            meter = Meter(clock=settings.clock)
            with split_rollout(policy, meter), meter("rollout"):
                policy.rollout(prompts, group, seed=int(cfg.seed), step=0, cot=True, cfg_weight=weight)
            return meter.seconds["image"]

        return [plain, ours]

    sizes = list(settings.growth_tokens)
    values = measured(sizes, points, settings.growth_repeats)
    return Curve("drawing over image tokens", "tokens an image", "seconds", sizes, values)


def over_vocabularies(settings: Any) -> Curve:
    """Peak memory of scoring and backward pass over the text vocabulary; gradients of the weights are there before."""

    def points(size: int) -> list[Callable[[], float]]:
        sized = OmegaConf.merge(settings, {"architecture": {"text_config": {"vocab_size": size}}})
        cfg, records = configuration(sized), read_records(sized)
        policy = build_policy(sized, cfg, records).train()
        made = made_up(
            policy, [record.prompt for record in records[: sized.prompts]], int(sized.group_size), sized.seed
        )
        return [lambda: scoring_peak(policy, made, False), lambda: scoring_peak(policy, made, True)]

    sizes = list(settings.growth_vocabularies)
    values = measured(sizes, points, 1, warm_up=1)
    return Curve("scoring memory over vocabulary", "words of the text vocabulary", "10^6 bytes", sizes, values)


def scoring_peak(policy: JanusPolicy, made: Rollout, ours: bool) -> float:
    """10^6 bytes above the state before scoring."""
    meter = Meter(memory_of(policy.device))
    trained = [p for p in policy.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.full_like(p, 0.0)  # written, unlike zeros: only then its pages are there
    mask = made.sampled.mask
    advantages = torch.ones_like(mask, dtype=torch.float32)
    with meter("scoring"):
        logps = policy(made).logps if ours else scores(policy.model, made.text, made.image, 1.0)[0]
    reference = logps.detach()
    loss = (
        policy_loss(logps, reference, advantages, mask)[0]
        if ours
        else published.loss(logps, reference, advantages, mask, 0.01, mask.sum())
    )
    with meter("backward"):
        loss.backward()
    for p in trained:
        p.grad = None
    return meter.scoring_bytes / 1e6


def made_up(policy: JanusPolicy, prompts: list[str], group: int, seed: int) -> Rollout:
    """Random tokens in place of drawn ones: scoring costs the same, and drawing them would take minutes."""
    source = torch.Generator().manual_seed(seed)
    texts = [prompt for prompt in prompts for _ in range(group)]
    lengths = torch.randint(1, policy.max_plan_tokens + 1, (len(texts),), generator=source)
    lengths[0] = policy.max_plan_tokens
    words = int(policy.model.config.text_config.vocab_size)
    plans = torch.randint(words, (len(texts), policy.max_plan_tokens), generator=source)
    counted = torch.arange(policy.max_plan_tokens) < lengths[:, None]
    known = int(policy.model.config.vq_config.num_embeddings)
    codes = torch.randint(known, (len(texts), policy.num_image_tokens), generator=source)
    rows = [plan[:length].tolist() for plan, length in zip(plans, lengths.tolist(), strict=True)]
    ends = [[policy.begin_of_image] for _ in texts]
    image = [policy.image_ids(text) + row + end for text, row, end in zip(texts, rows, ends, strict=True)]
    return Rollout(
        prompts=texts,
        plans=[""] * len(texts),
        truncated=torch.zeros(len(texts), dtype=torch.bool),
        text=segment(policy, [policy.reasoning_ids(text) for text in texts], plans, counted),
        image=segment(policy, image, codes, torch.ones_like(codes, dtype=torch.bool)),
        pixels=torch.zeros(len(texts), 0, 0, 3, dtype=torch.uint8),
    )


def segment(policy: JanusPolicy, contexts: list[list[int]], tokens: torch.Tensor, mask: torch.Tensor) -> Segment:
    ids, real = published.padded(contexts, policy.pad, policy.device, left=True)
    tokens, mask = tokens.to(policy.device), mask.to(policy.device)
    nothing = torch.zeros(mask.shape, device=policy.device)
    return Segment(ids, real, tokens, mask, nothing, nothing)


def measured(
    sizes: list[int], points: Callable[[int], list[Callable[[], float]]], repeats: int, warm_up: int = 0
) -> dict[str, list[float]]:
    """Medians by side: at each size the sides alternate."""
    values: dict[str, list[float]] = {name: [] for name in NAMES}
    for size in sizes:
        tasks = points(size)
        found = [[task() for task in tasks] for _ in range(warm_up + repeats)][warm_up:]
        for name, column in zip(NAMES, zip(*found, strict=True), strict=True):
            values[name].append(median(column))
        del tasks
        gc.collect()
    return values


def statement(curve: Curve) -> str:
    """The straight lines of one curve in a sentence."""
    fits = []
    for name in NAMES:
        intercept, slope, r2 = curve.fit(name)
        fits.append(f"{name} {intercept:.3g} + {slope:.3g} a unit (R2 {r2:.3f})")
    a, b = (curve.fit(name)[1] for name in NAMES)
    return f"growth: {curve.name}, {curve.unit}: {', '.join(fits)}; slopes published over ours {a / b:.2f}"


def leave(curves: list[Curve], folder: Path, title: str) -> None:
    """Writes growth.csv and growth.png, and prints a statement a curve."""
    write_csv(
        folder / "growth.csv",
        [
            {"curve": c.name, "side": name, "size": size, "value": f"{value:.6g}", "unit": c.unit}
            for c in curves
            for name in NAMES
            for size, value in zip(c.sizes, c.values[name], strict=True)
        ],
    )
    figure, axes = plt.subplots(1, len(curves), figsize=(4.5 * len(curves), 3.8), squeeze=False)
    for axis, curve in zip(axes[0], curves, strict=True):
        for name in NAMES:
            intercept, slope, _ = curve.fit(name)
            axis.plot(curve.sizes, curve.values[name], "o", color=COLOURS[name], label=name)
            axis.plot(curve.sizes, [intercept + slope * x for x in curve.sizes], "-", color=COLOURS[name], alpha=0.5)
        axis.set(xlabel=curve.label, ylabel=curve.unit, title=curve.name)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "growth.png", dpi=110)
    plt.close(figure)
    for curve in curves:
        print(statement(curve), flush=True)


def main(arguments: list[str]) -> None:
    """The curves alone."""
    settings = read_settings(DEFAULTS, arguments)
    curves = measure_growth(settings)
    if not curves:
        raise ValueError("nothing to measure: give one of growth_groups, growth_tokens, growth_vocabularies two sizes")
    folder = Path(settings.folder) / settings.shape
    leave(curves, folder, heading(settings))
    print(f"files: {folder}")


if __name__ == "__main__":
    told(main)
