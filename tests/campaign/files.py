"""Files that cases need: prompt lists, images, runs, checkpoints, benchmark data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.test_policies import SHAPES

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 76000000000\n"
HTML = b"<html><body>404 not found</body></html>"


def line(**row: Any) -> str:
    """A line of the training file's schema; `row` changes or adds keys, None removes one."""
    whole = {"prompt": "a red circle", "nouns": ["circle"], "task_type": "object", **row}
    return json.dumps({key: value for key, value in whole.items() if value is not None}) + "\n"


def picture(path: Path) -> None:
    """A small grey image."""
    Image.new("RGB", (48, 48), "grey").save(path, "PNG")


def folder_without_rights(path: Path) -> None:
    """Nobody may write there (root may)."""
    path.mkdir()
    path.chmod(0o500)


@cache
def weights() -> dict[str, torch.Tensor]:
    """The trained weights of a run with `SHAPES`, as they are shipped."""
    from omegaconf import OmegaConf

    from egrpo.checkpoints import trained_names
    from egrpo.policies import load_policy

    policy = load_policy(OmegaConf.create(SHAPES))
    names = trained_names(policy)
    return {f"policy.{name}": p.detach().clone() for name, p in policy.named_parameters() if name in names}


def config(**changes: Any) -> str:
    """config.yaml of a training run."""
    return json.dumps({"model": {**SHAPES, **changes}, "rollout": {}, "seed": 0})


def checkpoint(**changes: Any) -> Callable[[Path], None]:
    """A whole checkpoint; `changes` take the place of its entries."""

    def make(path: Path) -> None:
        torch.save({"global_step": 1, "state_dict": weights(), **changes}, path)

    return make


def with_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """A checkpoint whose weights are changed."""

    def make(path: Path) -> None:
        checkpoint(state_dict={name: change(value.clone()) for name, value in weights().items()})(path)

    return make


class Bomb:
    """Code in a pickle: makes the folder `ran`."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def cut(path: Path) -> None:
    """A checkpoint whose end is missing."""
    checkpoint()(path)
    path.write_bytes(path.read_bytes()[:-5000])


CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "cut": (cut, "cut short"),
    "empty": (b"", "is empty"),
    "page": (HTML, "not a checkpoint"),
    "pointer": (POINTER, "git lfs pull"),
    "code": (checkpoint(callbacks=Bomb()), "other things than tensors"),
    "nan": (with_weights(lambda w: w.fill_(float("nan"))), "holds NaN"),
    "shape": (with_weights(lambda w: w[:-3]), "shape"),
    "names": (checkpoint(state_dict={"policy.other": torch.zeros(3)}), "does not fit this model"),
    "foreign": (lambda path: torch.save({"epoch": 3}, path), "not the checkpoint of a training run"),
}


def run_folder(name: str, last: Any = None, **changes: Any) -> dict[str, Any]:
    """A run's files, below `name`."""
    return {
        f"{name}/config.yaml": config(**changes),
        f"{name}/checkpoints/last.ckpt": checkpoint() if last is None else last,
    }


def summary(strict: float, seed: int = 0, **config: Any) -> str:
    """summary.json of a finished run."""
    scores = {"strict": strict, "oracle": strict, "prompts": 640, "by_split": {}}
    validation = {"before": scores, "after": scores, "gain": {"strict": {"mean": 0.1}, "oracle": {"mean": 0.1}}}
    sizes = {"objective": {"updates_per_rollout": 1}, "data": {"prompts_per_step": 8}, "rollout": {"group_size": 8}}
    whole = {"validation": validation, "config": {"seed": seed, **sizes, **config}, "overrides": [f"seed={seed}"]}
    return json.dumps({**whole, "steps": 140, "seconds": {"total": 3.0}})


def geneval(**row: Any) -> str:
    """A line of GenEval's metadata; None removes a key."""
    include = [{"class": "dog", "count": 1}]
    whole = {"tag": "single_object", "include": include, "prompt": "a photo of a dog", **row}
    return json.dumps({key: value for key, value in whole.items() if value is not None}) + "\n"


def wise(number: Any = 1, **row: Any) -> dict[str, Any]:
    """An entry of WISE's data; None removes a key."""
    whole = {
        **{"Prompt": "a festival", "Explanation": "lanterns", "Category": "Cultural knowledge"},
        **{"Subcategory": "Festival", "prompt_id": number, **row},
    }
    return {key: value for key, value in whole.items() if value is not None}
