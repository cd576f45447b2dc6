"""What faster products do to the detector: its scores, boxes, detections and rewards against float32.

    python -m experiments.speed.precision          # on a CPU, where tf32 changes nothing
    python -m experiments.speed.precision device=cuda scenes=512 pack=../shared/conformance/gdino_tiny

Cases: rendered scenes of the shapes world for the shipped detector, half of them not what their prompt says; and, where
`pack` names it, the conformance pack of the published code, at its full image size. Queries may change places, so
scores are compared in the order of their size, phrase by phrase, and boxes with the nearest of the same phrase.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from egrpo.conversion.gdino import convert
from egrpo.paths import resolve
from egrpo.rewards import GroundingDinoReward
from egrpo.rewards.detection_rules import RULES, Detection, detection_score
from egrpo.rewards.gdino import phrase_scores
from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain_rewards.examples import held_out_records, wrong_scene
from egrpo.types import PromptRecord

DEFAULTS = {
    "device": "cpu",
    "precisions": ["tf32", "bfloat16", "float16"],
    "scenes": 64,
    "seed": 0,
    "batch_size": 8,
    "pack": None,  # folder gdino_tiny of the conformance packs
}
BEST = 20  # scores of a phrase that are compared, from the highest


@dataclass(frozen=True)
class Case:
    """Images with records for one detector."""

    name: str
    folder: Path
    quirks: str
    images: list[Image.Image]
    records: list[PromptRecord]


@dataclass(frozen=True)
class Seen:
    """What a detector gave for a case.

    scores: By image, [P, BEST] from the highest. rewards: [len(RULES), N].
    """

    scores: list[Tensor]
    found: list[list[Detection]]
    rewards: Tensor
    seconds: float


def scenes(count: int, seed: int) -> Case:
    """Held-out prompts with a scene each, every second one of another prompt's kind."""
    rng = np.random.default_rng(seed)
    records, images = held_out_records(count, seed), []
    for row, record in enumerate(records):
        things = draw_scene(spec_of(record), rng)
        things = wrong_scene(things, spec_of(record), rng) if row % 2 else things
        images.append(Image.fromarray(atlas.paint(atlas.encode(things, rng))))
    return Case("scenes", Path(resolve("package:egrpo/shapes/assets/rewards/gdino")), "fixed", images, records)


def conformance(source: Path, target: Path) -> Case:
    """All tasks of the pack on all its images; the converted model is left in `target`."""
    inputs: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(source / "inputs_and_rewards.json"))  # type: ignore
    convert(source, target)
    tasks = [PromptRecord("a prompt", **task) for task in inputs["tasks"]]
    images = [Image.open(source / name).convert("RGB") for name in inputs["images"]]
    return Case("pack", target, "reference", [i for i in images for _ in tasks], tasks * len(images))


def observe(case: Case, precision: str, settings: Any) -> Seen:
    """Runs the detector once to warm up, once to measure."""
    reward = GroundingDinoReward(
        case.folder,
        device=settings.device,
        batch_size=settings.batch_size,
        quirks=case.quirks,
        precision=precision,
    )
    scores: list[Tensor] = []
    plain = reward._above_threshold

    def watched(caption: Any, logits: Tensor, boxes: Tensor) -> list[Detection]:
        ranked = phrase_scores(caption, logits).sort(descending=True).values
        scores.append(ranked[:, :BEST])
        return plain(caption, logits, boxes)

    first = reward.batch_size
    reward.detect(case.images[:first], case.records[:first])
    reward._above_threshold = watched  # type: ignore[method-assign]
    start = time.perf_counter()
    found = reward.detect(case.images, case.records)
    seconds = time.perf_counter() - start
    rewards = [
        [detection_score(f, r, rules=rules, quirks=case.quirks) for f, r in zip(found, case.records, strict=True)]
        for rules in RULES
    ]
    return Seen(scores, found, torch.tensor(rewards), seconds)


def differences(seen: Seen, exact: Seen) -> dict[str, float]:
    """Of `seen` from `exact`: the largest of scores and boxes, detections that came or went, rewards that changed."""
    changed = (seen.rewards - exact.rewards).abs()
    return {
        "score": max((a - b).abs().max().item() for a, b in zip(seen.scores, exact.scores, strict=True)),
        "box": max(
            (
                box_distance(detection, found)
                for found, wanted in zip(seen.found, exact.found, strict=True)
                for detection in wanted
            ),
            default=0.0,
        ),
        "came or went": sum(
            abs(sum(d.phrase == name for d in found) - sum(d.phrase == name for d in wanted))
            for found, wanted in zip(seen.found, exact.found, strict=True)
            for name in {d.phrase for d in (*found, *wanted)}
        ),
        "rewards changed": int((changed > 1e-6).sum()),
        "reward": changed.max().item(),
    }


def box_distance(detection: Detection, found: list[Detection]) -> float:
    """Largest difference of a coordinate from the nearest box of the same phrase; 0 where there is none."""
    others = [d.box for d in found if d.phrase == detection.phrase]
    if not others:
        return 0.0  # it went, and is counted so
    return (torch.tensor(others) - torch.tensor(detection.box)).abs().amax(1).min().item()


def main() -> None:
    """Prints one table."""
    settings: Any = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    if unknown := set(settings) - set(DEFAULTS):
        sys.exit(f"unknown settings: {', '.join(sorted(unknown))}; there are {', '.join(DEFAULTS)}")
    device = torch.device(settings.device)
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print(f"{'case':8}{'images':>7}{'detections':>11}  {'precision':10}{'seconds':>8}  largest difference from float32")
    with TemporaryDirectory() as folder:
        cases = [scenes(settings.scenes, settings.seed)]
        if settings.pack:
            cases.append(conformance(Path(settings.pack), Path(folder)))
        for case in cases:
            exact = observe(case, "float32", settings)
            count = sum(map(len, exact.found))
            print(f"{case.name:8}{len(case.images):7}{count:11}  {'float32':10}{exact.seconds:8.2f}", flush=True)
            for precision in settings.precisions:
                seen = observe(case, precision, settings)
                told = ", ".join(f"{name} {value:.2g}" for name, value in differences(seen, exact).items())
                print(
                    f"{case.name:8}{len(case.images):7}{count:11}  {precision:10}{seen.seconds:8.2f}  {told}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
