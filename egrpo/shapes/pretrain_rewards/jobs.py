"""One network's training and measurement, a process of its own; what is finished is kept.

Not in `__main__`: a spawned process does not import the `__main__` of a package, and would find none of this there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from hydra.utils import instantiate


def make_network(name: str, recipe: dict[str, Any], seed: int, held_out: int | None, target: Path) -> dict[str, Any]:
    """Trains the network `name` into `target/name` and measures it: {"seconds", "cpu_seconds", "seed", measured
    numbers}; where other processes hold the cores, the processor's seconds are fewer.

    `recipe` is a partial `train(folder, *, seed)`; the `measure(folder, *, count)` beside it gives the numbers, on
    `held_out` prompts (None: as many as it likes). The finished network is kept beside `target`, under a name that its
    recipe and seed decide. Where it is there already, it is taken from there.
    """
    key = hashlib.sha256(json.dumps([recipe, seed, held_out], sort_keys=True).encode()).hexdigest()[:12]
    kept = target.parent / f"{name}_{key}"
    if not kept.exists():
        partial = kept.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / name).mkdir(parents=True)
        train = instantiate(recipe)
        start, worked = time.monotonic(), time.process_time()
        train(partial / name, seed=seed)
        verdict = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - worked, "seed": seed}
        count = {} if held_out is None else {"count": held_out}
        verdict |= sys.modules[train.func.__module__].measure(partial / name, **count)
        (partial / "verdict.json").write_text(json.dumps(verdict))
        partial.replace(kept)
    shutil.rmtree(target / name, ignore_errors=True)
    shutil.copytree(kept / name, target / name)
    return dict(json.loads((kept / "verdict.json").read_text()))
