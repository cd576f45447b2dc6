"""What the tests of Janus's conversion share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from egrpo.conversion.janus_names import TOWER

REPO = Path(__file__).resolve().parents[2]
SHAPES = REPO / "egrpo/shapes/assets/janus"
QKV = TOWER + "blocks.1.attn.qkv.weight"
NATIVE_CODEBOOK = "model.vqmodel.quantize.embedding.weight"


def write(folder: Path, state: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def edit(path: Path, dotted: str, value: Any) -> None:
    content = json.loads(path.read_text())
    *parents, last = dotted.split(".")
    place = content
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(content))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def same_files(a: Path, b: Path, but: tuple[str, ...] = ()) -> bool:
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file() and p.name not in but)
    return names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file() and p.name not in but) and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names
    )


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
