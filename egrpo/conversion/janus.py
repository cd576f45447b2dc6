"""Janus in the original format (deepseek-ai/Janus-Pro-1B and -7B, T2I-R1's weights) -> JanusForConditionalGeneration.

What the native model has no place for is kept in the folder `original` of the new directory, so that
`egrpo.conversion.janus_original` can give back every file and every bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration

from egrpo.conversion.checkpoints import (
    ConversionError,
    Summary,
    check_keys,
    load_sharded,
    read_json,
    save_converted,
)
from egrpo.conversion.janus_config import DIMS_FILE, TokenIds, native_config, read_dims
from egrpo.conversion.janus_names import CODEBOOK, UNUSED, original_name, to_native
from egrpo.conversion.janus_tokens import FILES, native_processor, read_tokenizer, token_ids

KEPT = "original"  # the folder in a native directory
KEPT_TENSORS = "original_only.safetensors"
GUIDANCE = 5.0  # of the original's own generation script; transformers' generate warns without one


@dataclass(frozen=True)
class JanusSummary(Summary):
    """What a conversion wrote, and what it could not."""

    note: str = ""

    def __str__(self) -> str:
        return super().__str__() + (f" ({self.note})" if self.note else "")


def convert(source: Path, target: Path) -> JanusSummary:
    """Writes weights (types as stored), configuration, processor, and the folder `original`.

    Shards are mapped into memory, not read, and every tensor is written from there: only what changes its layout (the
    vision tower's attention) is ever copied.

    Args:
        source: Folder with config.json and the weights (one file, or shards with an index; .safetensors or .bin), the
            tokenizer's files, and `tiny_dims.json` where sizes are not the official ones. Without tokenizer files the
            directory has none either: the model loads by itself, but not as a policy.
        target: Another folder.

    Raises:
        ConversionError: a file is missing, a key is missing or surplus, a shape or a setting does not fit.
    """
    check_folders(source, target)
    original, dims = read_json(source / "config.json"), read_dims(source)
    tokenizer = read_tokenizer(source)
    ids = told_ids(dims, source) if tokenizer is None else token_ids(tokenizer)
    config = native_config(original, dims, ids, source / "config.json")
    _check_room(ids, config, source)
    stored = load_sharded(source)
    model = empty_model(config)
    model.generation_config = generation_config(ids)
    needed = {name for key in model.state_dict() if (name := original_name(key))}
    check_keys(stored.keys() - set(UNUSED), needed, source)
    state = to_native({name: stored[name] for name in needed})
    summary = save_converted("janus", model, state, source, target)
    if tokenizer is not None:
        native_processor(tokenizer, config, source).save_pretrained(target)
    keep(stored, source, target)
    note = "" if tokenizer is not None else f"without a tokenizer, since {source} has none: no policy loads it by name"
    return JanusSummary(**{**vars(summary), "note": note})


def check_folders(source: Path, target: Path) -> None:
    """Raises ConversionError unless `source` is a folder and `target` another one."""
    if not source.is_dir():
        raise ConversionError(f"source={source} is no folder: give the one that holds config.json and the weights")
    if target.resolve() == source.resolve():
        raise ConversionError(f"target={target} is the source itself, which would be overwritten: name another folder")


def empty_model(config: JanusConfig) -> JanusForConditionalGeneration:
    """The native model without memory for its weights."""
    with torch.device("meta"):
        return JanusForConditionalGeneration(config)


def told_ids(dims: Mapping[str, Any], source: Path) -> TokenIds:
    """The special tokens that tiny_dims.json tells; a tokenizer knows better."""
    told = dims.get("special_token_ids", {})
    strange = sorted(set(told) - {field.name for field in fields(TokenIds)})
    if strange:
        raise ConversionError(f"{source / DIMS_FILE} has special_token_ids that no Janus has: {', '.join(strange)}")
    return TokenIds(**told)


def generation_config(ids: TokenIds) -> GenerationConfig:
    """Special tokens where transformers' Janus and `egrpo.policy` look for them."""
    images = {} if ids.begin_of_image is None else {"generation_kwargs": {"boi_token_id": ids.begin_of_image}}
    return GenerationConfig(
        bos_token_id=ids.bos, eos_token_id=ids.eos, pad_token_id=ids.pad, guidance_scale=GUIDANCE, **images
    )


def keep(stored: dict[str, Tensor], source: Path, target: Path) -> None:
    """Files of `source`, its codebook as it was, and the unused tensors, into the folder `original` of `target`."""
    folder = target / KEPT
    folder.mkdir(exist_ok=True)
    kept = {name: stored[name].contiguous() for name in (CODEBOOK, *UNUSED) if name in stored}
    save_file(kept, folder / KEPT_TENSORS, metadata={"format": "pt"})
    for name in ("config.json", DIMS_FILE, *FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _check_room(ids: TokenIds, config: Any, source: Path) -> None:
    size = config.text_config.vocab_size
    outside = [f"{name} {value}" for name, value in vars(ids).items() if value is not None and value >= size]
    if outside:
        raise ConversionError(
            f"{source}: the vocabulary of {size} has no room for the special tokens {', '.join(outside)}: "
            "take the tokenizer files that belong to the checkpoint"
        )
