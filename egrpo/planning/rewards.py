"""Reward models: their sizes from the folder that a run would load, or else as published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig

from egrpo.base.errors import UserError
from egrpo.paths import resolve
from egrpo.planning.architecture import numel


@dataclass(frozen=True)
class RewardModel:
    """One reward's model on a device."""

    name: str
    parameters: int
    bytes: int
    offload: bool  # waits on the host between uses
    flops: float  # an image
    activations: int  # bytes at once, of a batch
    source: str  # where its size is from
    compute_type: str = "float32"  # of its products
    image_ms: float = 0  # measured, preparation included; computing may take longer


def read_rewards(cfg: DictConfig, images: int) -> list[RewardModel]:
    """All rewards and judges of a composed run that load a model onto the accelerator; `images` a step.

    Raises:
        UserError: a reward names a folder that is not there, and no size of such a model is published.
    """
    found = []
    used = {name: node for name, node in cfg.reward.items() if node is not None and node.get("weight") != 0}
    nodes = [(f"reward.{name}.reward", name, node.get("reward")) for name, node in used.items()]
    nodes += [(f"judge.{name}", str(name), node) for name, node in cfg.judge.items()]
    for place, name, node in nodes:
        if node is None or "path" not in node or str(node.get("device", "cpu")) == "cpu":
            continue
        found.append(_read(place, str(name), node, cfg.published_rewards.get(node._target_), images))
    return found


def _read(place: str, name: str, node: Any, published: Any, images: int) -> RewardModel:
    folder = resolve(node.path)
    if (folder / "config.json").is_file():
        parameters, source = count_parameters(folder), f"{folder}/config.json"
    elif published is not None:
        parameters, source = int(published.parameters), "as published"
    else:
        raise UserError(
            f"{place}.path={node.path} holds no config.json, and no size of a {node._target_} is in published_rewards: "
            f"fetch the model, or add +published_rewards.{node._target_}='{{parameters: ..., flops: ..., activations: "
            "...}'"
        )
    dtype = getattr(torch, str(node.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"{place}.dtype={node.dtype} is no type of torch: set float32 or bfloat16")
    known: Mapping[str, float] = published or {"parameters": parameters, "flops": 2.0 * parameters, "activations": 0}
    scale = parameters / known["parameters"]  # a smaller model of the kind
    batch = min(node.get("batch_size", images), images)
    return RewardModel(
        name=name,
        parameters=parameters,
        bytes=parameters * dtype.itemsize,
        offload=bool(node.get("offload", False)),
        flops=known["flops"] * scale,
        activations=round(known["activations"] * scale * batch),
        source=source,
        compute_type=product_type(node),
        image_ms=float(known.get("image_ms", 0.0)) * scale,
    )


def product_type(node: Any) -> str:
    """Of a reward's products: `precision` where it is set for float32 weights, else the type of the weights."""
    dtype, precision = str(node.get("dtype", "float32")), str(node.get("precision", "float32"))
    return precision if dtype == "float32" else dtype


def count_parameters(folder: Path) -> int:
    """Of the transformers model whose config.json is in `folder`, built on the meta device.

    Raises:
        UserError: transformers has no model of the architecture that the file names.
    """
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = next(iter(content.get("architectures") or []), None)
    kind = getattr(transformers, str(name), None)
    if kind is None:
        raise UserError(f'{folder}/config.json: transformers has no model {name!r} (its "architectures")')
    with torch.device("meta"):
        return numel(kind(kind.config_class.from_dict(content)).parameters())
