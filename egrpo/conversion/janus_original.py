"""A native Janus directory -> the original format (deepseek-ai/Janus), which other people's evaluation code loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, JanusConfig

from egrpo.conversion.checkpoints import SHOWN, ConversionError, check_keys, load_sharded, load_state, read_json
from egrpo.conversion.janus import KEPT, KEPT_TENSORS, JanusSummary, check_folders, empty_model
from egrpo.conversion.janus_config import DIMS_FILE, TokenIds, native_config, original_config, original_dims
from egrpo.conversion.janus_names import CODEBOOK, EMBEDDING, HEAD, to_original, unit_norm, unused_zeros
from egrpo.conversion.janus_tokens import FILES, TOKENIZER, original_files, token_ids, write_json
from egrpo.tensor_files import check_finite


def convert(source: Path, target: Path, base: str | Path | None = None) -> JanusSummary:
    """Writes config.json, model.safetensors (original names, types as stored) and the tokenizer's files.

    What `egrpo.conversion.janus` kept in the folder `original` of `source` comes back bit for bit: from the original
    format to the native one and back nothing changes. A run's export has no such folder: give `base`. Without either,
    the unused tensors become zeros (the original's loader wants every key, and nothing that it runs reads them), the
    codebook stays normalised (the original normalises it anyway), and configuration and tokenizer files are written
    anew. Sizes other than the official ones go to tiny_dims.json, which the original's code does not read.

    Args:
        source: A native directory, as `kind=janus`, `egrpo.export` or transformers write it.
        target: Another folder.
        base: A directory that `egrpo.conversion.janus` wrote for the model that `source` was trained from.

    Raises:
        ConversionError: `source` is no native Janus, a key is missing or surplus, or `base` is another model.
        CheckpointError: a weight is NaN or infinite.
    """
    check_folders(source, target)
    config = read_native_config(source)
    native, kept = native_state(source, config), kept_folder(source, base)
    check_finite(native.items(), str(source))
    state, notes = original_state(native, config, kept)
    target.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, target / "model.safetensors", {"format": "pt"}
    )
    dtype = str(native[EMBEDDING].dtype).removeprefix("torch.")
    if kept is None:
        notes += write_files(source, target, config, dtype)
    else:
        for name in ("config.json", DIMS_FILE, *FILES):
            if (kept / name).is_file():
                shutil.copyfile(kept / name, target / name)
    parameters = sum(tensor.numel() for tensor in state.values())
    return JanusSummary("janus_original", len(state), parameters, dtype, target, "; ".join(notes))


def read_native_config(source: Path) -> JanusConfig:
    """Raises ConversionError unless `source` holds the configuration of a native Janus."""
    path = source / "config.json"
    kind = read_json(path).get("model_type")
    if kind != "janus":
        hint = "it is in the original format already" if kind == "multi_modality" else "give a native Janus directory"
        raise ConversionError(f"{path} says model_type {kind!r}, wanted 'janus': {hint}")
    return JanusConfig.from_pretrained(source)


def native_state(source: Path, config: Any) -> dict[str, Tensor]:
    """The stored tensors, the text head among them even where it is tied to the embedding.

    Raises:
        ConversionError: keys are missing or surplus, or shapes do not fit the configuration.
    """
    state = load_sharded(source)
    if HEAD not in state and config.tie_word_embeddings and EMBEDDING in state:
        state[HEAD] = state[EMBEDDING].clone()  # the original ties nothing
    wanted = empty_model(config).state_dict()
    check_keys(state, wanted, source)
    wrong = [name for name, tensor in wanted.items() if state[name].shape != tensor.shape]
    if wrong:
        raise ConversionError(f"{source}: {', '.join(wrong[:SHOWN])} do not have the shapes that its config.json says")
    return state


def kept_folder(source: Path, base: str | Path | None) -> Path | None:
    """The folder `original` of `source`, else of `base`, else None.

    Raises:
        ConversionError: `base` has none.
    """
    if (source / KEPT / KEPT_TENSORS).is_file():
        return source / KEPT
    if base is None:
        return None
    folder = Path(base).expanduser() / KEPT
    if not (folder / KEPT_TENSORS).is_file():
        raise ConversionError(f"base={base} has no {KEPT}/{KEPT_TENSORS}: give a directory that kind=janus wrote")
    return folder


def original_state(native: dict[str, Tensor], config: Any, kept: Path | None) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor under its original name, and what there is to tell about those that are not the original's.

    Raises:
        ConversionError: `kept` belongs to a model of other sizes.
    """
    state, notes = to_original(native), []
    codebook, vision = state[CODEBOOK], config.vision_config
    if kept is None:
        notes.append("normalised codebook; codebook_used and attn_pool, which are never read, are zeros")
        width = vision.hidden_size
        return state | unused_zeros(width, int(width * vision.mlp_ratio), codebook.dtype), notes
    _check_same_sizes(native, kept)
    extra = load_state(kept / KEPT_TENSORS)
    raw = extra.pop(CODEBOOK)
    if torch.equal(unit_norm(raw).to(codebook.dtype), codebook):
        state[CODEBOOK] = raw.to(codebook.dtype)
    else:
        notes.append("the codebook is not that of the original any more and stays as trained")
    return state | extra, notes


def _check_same_sizes(native: dict[str, Tensor], kept: Path) -> None:
    dims = read_json(kept / DIMS_FILE) if (kept / DIMS_FILE).is_file() else {}
    path = kept / "config.json"
    before = empty_model(native_config(read_json(path), dims, TokenIds(), path)).state_dict()
    other = [name for name, tensor in native.items() if name not in before or before[name].shape != tensor.shape]
    if other or before.keys() - native.keys():
        raise ConversionError(
            f"{path} belongs to a model of other sizes ({', '.join(other[:SHOWN])}): give the one that was trained"
        )


def write_files(source: Path, target: Path, config: Any, dtype: str) -> list[str]:
    """config.json, tiny_dims.json where needed, and the tokenizer's files where `source` has a tokenizer; notes."""
    write_json(target / "config.json", original_config(config, dtype))
    processor, tokenizer = _read_processor(source)
    dims, notes = original_dims(config), []
    if dims:
        ids = {} if tokenizer is None else {"special_token_ids": vars(token_ids(tokenizer))}
        write_json(target / DIMS_FILE, dims | ids)
        notes.append(f"not of an official size: {DIMS_FILE} says which, and the original's code must be told")
    if tokenizer is None:
        return [*notes, f"without a tokenizer, since {source} has none"]
    shutil.copyfile(source / TOKENIZER, target / TOKENIZER)
    for name, content in original_files(processor, tokenizer, config).items():
        write_json(target / name, content)
    return notes


def _read_processor(source: Path) -> tuple[Any, Any]:
    """Processor and tokenizer, either None where `source` has none."""
    if not (source / TOKENIZER).is_file():
        return None, None
    try:
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return None, AutoTokenizer.from_pretrained(source)
    return (processor, processor.tokenizer) if hasattr(processor, "image_processor") else (None, processor)
