"""Checkpoints in several files, as transformers and the original codes write them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def shard(folder: Path, state: dict[str, Tensor], suffix: str) -> None:
    """Three files and their index."""
    stem, map_ = {"safetensors": "model", "bin": "pytorch_model"}[suffix], {}
    for number in range(3):
        part = dict(list(state.items())[number::3])
        name = f"{stem}-{number + 1:05}-of-00003.{suffix}"
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
        map_ |= dict.fromkeys(part, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": map_}))
