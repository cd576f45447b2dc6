"""Small prompt sets in the official formats, images for them, and the benchmarks as their yaml files make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from egrpo.benchmarks import Benchmark
from egrpo.benchmarks.items import Item
from tests.conf.helpers import CONF

COLORS = ["a green bench and a blue bowl", "a red/orange car and a snake_case sign", "a brown horse"]
SPATIAL = ["a cat on the left of a dog", "a cup near a table"]
COMPLEX = ["The red cup is next to the box.", "The tall man eats a big apple.", "A small dog runs near the green car."]
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cup", "count": 2}],
        "exclude": [{"class": "cup", "count": 3}],
        "prompt": "a photo of two cups",
    },
]


def benchmark(name: str, *overrides: str) -> Any:
    """conf/benchmark/NAME.yaml, built; no models are loaded."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(None, [f"+benchmark={name}", "+reward_models=nowhere", *overrides])
    return instantiate(cfg.benchmark)


def t2i_prompts(folder: Path, **categories: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for category, prompts in (categories or {"color": COLORS, "spatial": SPATIAL}).items():
        (folder / f"{category}_val.txt").write_text("\n".join(prompts) + "\n")
    return folder


def geneval_prompts(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in GENEVAL))
    return path


def wise_row(number: int) -> dict[str, Any]:
    row = {"Prompt": f"what number {number} looks like", "Explanation": f"number {number}", "prompt_id": number}
    return {**row, "Category": "any", "Subcategory": "any"}


def wise_prompts(folder: Path, *numbers: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    half = len(numbers) // 2
    for name, part in (("a", numbers[:half]), ("b", numbers[half:])):
        (folder / f"{name}.json").write_text(json.dumps([wise_row(number) for number in part]))
    return folder


def picture(item: Item, number: int) -> Image.Image:
    """An image that differs for every item and number."""
    seed = sum(map(ord, item.key)) * 7 + number
    return Image.new("RGB", (8, 8), (seed % 256, seed * 3 % 256, seed * 5 % 256))


def fill(folder: Path, of: Benchmark) -> Path:
    """Exports every image that is missing."""
    for item, number in of.missing(folder):
        of.write_image(folder, item, number, picture(item, number))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
