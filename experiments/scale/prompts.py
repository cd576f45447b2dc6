"""Prompts of the kinds that the published training file has, in its schema: what the four rewards ask about."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

COLORS = ("red", "green", "blue", "yellow")
THINGS = ("cup", "dog", "car", "apple", "chair", "bird", "book", "bench")


def write_prompts(path: Path) -> None:
    """JSON Lines: colors, a place and two objects, in turn."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records()))


def records() -> list[dict[str, Any]]:
    """96 records."""
    pairs = list(product(COLORS, THINGS))
    found: list[dict[str, Any]] = []
    for (color, thing), (other_color, other) in zip(pairs, reversed(pairs), strict=True):
        nouns = [thing, other]
        found.append(
            {
                "prompt": f"a {color} {thing} and a {other_color} {other}",
                "task_type": "color",
                "nouns": nouns,
                "attr_nouns": [f"{color} {thing}", f"{other_color} {other}"],
            }
        )
        place = {"obj1": thing, "obj2": other, "locality": "below"}
        found.append(
            {
                "prompt": f"a photo of a {thing} below a {other}",
                "task_type": "spatial",
                "nouns": nouns,
                "spatial_info": place,
            }
        )
        found.append({"prompt": f"a photo of a {thing} and a {other}", "task_type": "object", "nouns": nouns})
    return found
