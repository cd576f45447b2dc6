"""A study made of random numbers with planted relations, as the table and the tokens that drawing would leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from egrpo.analysis.study import StudyDescription, TokenReader, TokenTable

SETTINGS = {
    "base": "untouched model, no plans",
    "base_cot": "untouched model, with plans",
    "grpo": "trained with plain GRPO",
    "eg_grpo": "trained with EG-GRPO",
}
WORDS = ("one", "red", "circle", "left", "of", "a", "tiny", "striped", "blue", "square", "on", "white", "ground")


def study(**changes: object) -> StudyDescription:
    given = {
        "title": "A synthetic study",
        "command": "python -m egrpo.analyze +experiment=analysis_shapes",
        "settings": SETTINGS,
        "baseline": "base_cot",
        "sizes": {"num_prompts": 12, "plans_per_prompt": 3, "images_per_plan": 3},
        "seed": 0,
        "versions": {"python": "3.11"},
        "config": "seed: 0\n",
        "cot_pair": ("base", "base_cot"),
        "training_pairs": (("base_cot", "grpo"), ("base_cot", "eg_grpo")),
        "resamples": 200,
    }
    return StudyDescription(**{**given, **changes})  # type: ignore[arg-type]


def records(
    prompts: int = 12, plans: int = 3, images: int = 3, settings: tuple[str, ...] = tuple(SETTINGS), seed: int = 0
) -> pd.DataFrame:
    """Hard prompts have high image entropy and low reward; within a prompt only text entropy matters."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=prompts)
    rows = []
    for number, setting in enumerate(settings):
        trained = number >= 2
        for prompt in range(prompts):
            for plan in range(1 if setting == "base" else plans):
                text = float(np.clip(0.3 + 0.08 * rng.normal() - 0.1 * trained, 0.01, 1))
                for image in range(images):
                    mean = 0.5 + 0.05 * hard[prompt] + 0.02 * rng.normal() - 0.08 * trained
                    std = 0.2 + 0.03 * hard[prompt] + 0.01 * rng.normal()
                    plain = setting == "base"
                    reward = 0.6 - 0.15 * hard[prompt] - (0 if plain else text - 0.3) + 0.1 * rng.normal()
                    rows.append(_row(setting, prompt, plan, image, reward + 0.1 * trained, mean, std, text, plain))
    return pd.DataFrame(rows)


def _row(
    setting: str, prompt: int, plan: int, image: int, reward: float, mean: float, std: float, text: float, plain: bool
) -> dict[str, object]:
    row: dict[str, object] = {
        "setting": setting,
        "prompt": f"prompt number {prompt}",
        "prompt_index": prompt,
        "task_type": ("color", "shape")[prompt % 2],
        "split": None,
        "plan": "" if plain else f"plan {plan} of {setting}",
        "plan_index": plan,
        "plan_id": f"{setting}/{prompt}/{plan}",
        "image_index": image,
        "seed": 0,
        "file": f"images/{setting}_{prompt}_{plan}_{image}.png",
        "reward": reward,
        "reward/oracle": reward,
        "judge/strict": float(reward > 0.5),
        "plan_tokens": 0 if plain else 9,
        "plan_truncated": False,
    }
    for kind in ("image", "guided", "text"):
        centre, spread = (text, text / 2) if kind == "text" else (mean, std)
        empty = plain and kind == "text"
        row |= {f"{kind}_entropy_mean": np.nan if empty else centre, f"{kind}_entropy_std": np.nan if empty else spread}
        for part, shift in (("q25", -0.7), ("q50", 0.0), ("q75", 0.7)):
            row[f"{kind}_entropy_{part}"] = np.nan if empty else centre + shift * spread
    return row


def reader(table: pd.DataFrame, side: int = 6) -> TokenReader:
    """Tokens of such a table; the same for the same setting and prompt."""

    def read(setting: str, prompt: int) -> TokenTable:
        rows = table[(table["setting"] == setting) & (table["prompt_index"] == prompt)]
        rows = rows.sort_values(["plan_index", "image_index"])
        rng = np.random.default_rng([list(SETTINGS).index(setting), prompt])
        n, ramp = len(rows), np.linspace(1.3, 0.5, side * side)
        entropy = rows["image_entropy_mean"].to_numpy()[:, None] * ramp + 0.1 * rng.random((n, side * side))
        entropy = entropy.clip(0, 1).astype(np.float32)
        words, uncertain = [], []
        for _, plan in rows.groupby("plan_index"):
            length = 0 if (plan["plan"] == "").all() else int(rng.integers(6, 14))
            words += [[f" {word}" for word in rng.choice(WORDS, length)]] * len(plan)
            uncertain += [rng.beta(1, 3, length).astype(np.float32)] * len(plan)
        return TokenTable(
            codes=rng.integers(0, 64, (n, side * side)),
            image_entropy=entropy,
            guided_entropy=entropy,
            plan_ids=[np.arange(len(w)) for w in words],
            plan_texts=words,
            text_entropy=uncertain,
        )

    return read


def draw_images(table: pd.DataFrame, folder: Path, side: int = 48) -> None:
    """Writes a picture for every row."""
    for file in table["file"]:
        rng = np.random.default_rng(list(file.encode()))
        picture = np.full((side, side, 3), 235, np.uint8)
        top, left = rng.integers(4, side // 2, 2)
        picture[top : top + side // 3, left : left + side // 3] = rng.integers(0, 200, 3)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / file)
