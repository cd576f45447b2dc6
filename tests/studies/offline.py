"""Reads an offline W&B run back: records in LevelDB's log format, each a protocol buffer of W&B's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEAD = 32768, 7  # bytes of a block, and before each part: 4 of checksum, 2 of length, 1 of kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Offline:
    """What a run's file holds."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)


def read_offline(folder: Path) -> Offline:
    """The one offline run below a training run's folder."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    out = Offline()
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            run = record.run
            out.name, out.group, out.job_type, out.tags = run.display_name, run.run_group, run.job_type, list(run.tags)
        for update in [*record.run.config.update, *record.config.update]:
            out.config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
        out.metrics |= {"/".join(item.nested_key) or item.key for item in record.history.item}
    return out


def _records(data: bytes) -> Iterator[bytes]:
    at, parts = HEAD, b""  # the file begins with a head of its own
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:  # the rest of a block is too short for a part
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
