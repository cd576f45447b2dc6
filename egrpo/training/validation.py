"""Validation on held-out prompts: one sample a prompt, the same random numbers every time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from egrpo import distributed
from egrpo.base.files import writing
from egrpo.images import to_images
from egrpo.policy import JanusPolicy
from egrpo.policy.randomness import EVALUATION_STEP
from egrpo.rewards import Reward, RewardEnsemble
from egrpo.rewards.measuring import measure
from egrpo.training.settings import RolloutSettings
from egrpo.types import PromptRecord

SEEN = "seen"  # the split of validation prompts that training also uses; never part of an overall number
PART = "reward/"  # before the name of one reward of the ensemble


@dataclass(frozen=True)
class Row:
    """One validated prompt.

    `scores` holds every judge, "reward" for the weighted sum of what is optimised (where some reward was not dropped),
    and "reward/NAME" for each reward that says something about this image (see `RewardTable.told`).
    """

    record: PromptRecord
    plan: str
    image: np.ndarray  # [H, W, 3] uint8; of no height on all ranks but the first, once rows are gathered
    scores: dict[str, float]

    @property
    def split(self) -> str:
        return self.record.extra.get("split", "all")


def save_rows(path: Path, rows: list[Row]) -> None:
    """Keeps the rows of a validation, so that a resumed run need not measure the untouched model again."""
    if not rows:
        return
    texts = [json.dumps({"record": row.record.to_dict(), "plan": row.plan, "scores": row.scores}) for row in rows]
    partial = path.with_suffix(".partial.npz")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(partial, texts=np.array(texts), images=np.stack([row.image for row in rows]))
        partial.replace(path)


def load_rows(path: Path) -> list[Row]:
    """Inverse of `save_rows`."""
    with np.load(path) as file:
        texts, images = [json.loads(text) for text in file["texts"]], file["images"]
    return [
        Row(PromptRecord.from_dict(text["record"]), text["plan"], image, text["scores"])
        for text, image in zip(texts, images, strict=True)
    ]


class Validation:
    """Draws, scores and keeps the rows of the current validation.

    Args:
        rewards: The optimised ensemble.
        judges: Rewards that are only measured.
        rollout: How samples are drawn; `with_temperature` changes its temperature.
        seed: Of the sampling.
    """

    def __init__(self, rewards: RewardEnsemble, judges: Mapping[str, Reward], rollout: RolloutSettings, seed: int):
        self.rewards, self.judges, self.rollout, self.seed = rewards, dict(judges), rollout, seed
        self.prefix = ""
        self.rows: list[Row] = []
        self.drawn: Counter[str] = Counter()  # how often each prompt came in the current validation
        self.finished_at: int | None = None  # optimizer step of the last whole validation

    def with_temperature(self, temperature: float, prefix: str = "") -> None:
        """Later validations sample at this temperature, and their metrics' names start with `prefix`."""
        self.rollout = replace(self.rollout, temperature=temperature)
        self.prefix = prefix

    def start(self) -> None:
        self.rows, self.finished_at, self.drawn = [], None, Counter()

    def add(self, policy: JanusPolicy, records: list[PromptRecord]) -> None:
        """Samples one image for each of the records, of which a rank may have none, and scores it.

        A prompt that comes again in the file gets its next sample.
        """
        own = self._numbers([record.prompt for record in records])
        idle = policy.drawing.most(len(records)) - len(records)  # ranks in step draw equally many
        if not records and not idle:
            return
        drawn = policy.rollout(
            [*records, *[PromptRecord("nothing")] * idle],
            1,
            sample_offset=[*own, *[0] * idle],
            seed=self.seed,
            step=EVALUATION_STEP,
            cot=self.rollout.cot,
            cfg_weight=self.rollout.cfg_weight,
            temperature=self.rollout.temperature,
            chunk=self.rollout.batch_size,
            top_k=self.rollout.top_k,
            top_p=self.rollout.top_p,
            plan_top_k=self.rollout.plan_top_k,
        )
        drawn = drawn[: len(records)]
        if not records:
            return
        images = to_images(drawn.pixels)
        table = self.rewards(images, records)
        columns = {"reward": table.total} | {
            name: measure(name, judge, images, records, failures=self.rewards.failures).values
            for name, judge in self.judges.items()
        }
        pixels, judged = drawn.pixels.cpu().numpy(), table.judged.tolist()
        for i, record in enumerate(records):
            scores = {name: column[i].item() for name, column in columns.items() if name in self.judges or judged[i]}
            for name, value, told in zip(table.names, table.values[i].tolist(), table.told[i].tolist(), strict=True):
                if told:
                    scores[PART + name] = value
            self.rows.append(Row(record, drawn.plans[i], pixels[i], scores))

    def _numbers(self, prompts: list[str]) -> list[int]:
        """The number of each prompt's sample among those of equal prompts, over batches and ranks: 0, where it is new.

        All ranks come here for every batch.
        """
        parts = distributed.gather(prompts)
        numbers: list[list[int]] = [[] for _ in parts]
        for row in range(max(map(len, parts))):
            for part, found in zip(parts, numbers, strict=True):
                if row < len(part):
                    found.append(self.drawn[part[row]])
                    self.drawn[part[row]] += 1
        return numbers[distributed.rank()]

    def gather(self) -> None:
        """Puts the rows of all ranks together, in the order of the file (see `egrpo.data.datamodule.val_batches`).

        Images go to the first rank alone, which reports; elsewhere they are empty, [0, W, 3].
        """
        images = distributed.gather_first([row.image for row in self.rows])
        parts = distributed.gather([replace(row, image=row.image[:0].copy()) for row in self.rows])
        if images is not None:
            parts = [
                [replace(row, image=image) for row, image in zip(rows, own, strict=True)]
                for rows, own in zip(parts, images, strict=True)
            ]
        longest = max(len(part) for part in parts)
        self.rows = [part[i] for i in range(longest) for part in parts if i < len(part)]

    def means(self) -> dict[str, float]:
        """Metric name -> mean over held-out prompts, and the same for each split."""
        out = mean_scores(held_out(self.rows))
        for split, rows in grouped(self.rows, lambda row: row.split).items():
            out |= {f"{name}/{split}": value for name, value in mean_scores(rows).items()}
        return {self.prefix + name: value for name, value in out.items()}


def held_out(rows: list[Row]) -> list[Row]:
    """The rows that overall numbers are about: all but the split "seen", or all where there is nothing else."""
    return [row for row in rows if row.split != SEEN] or rows


def mean_scores(rows: list[Row]) -> dict[str, float]:
    """Mean of every score over the rows that have it."""
    return {name: float(scores_of(rows, name).mean()) for name in score_names(rows)}


def score_names(rows: list[Row]) -> list[str]:
    """Names of all scores that some row has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def scores_of(rows: list[Row], name: str) -> np.ndarray:
    """One score of the rows that have it."""
    return np.array([row.scores[name] for row in rows if name in row.scores])


def grouped(rows: list[Row], key: Any) -> dict[str, list[Row]]:
    """Rows by key, keys sorted."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    return dict(sorted(out.items()))


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """95 % interval of a mean by bootstrap over prompts (percentile, 5,000 resamples)."""
    if len(values) < 2 or np.ptp(values) == 0:
        return [float(np.mean(values))] * 2
    result = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(seed))
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]
