"""Reading official checkpoints safely, and writing transformers directories with every key accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from egrpo.base.errors import UserError
from egrpo.tensor_files import CheckpointError, check_finite, read_tensors

SHOWN = 8  # keys named in an error
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class ConversionError(UserError):
    """The source is not what the converter expects. The message says which keys or files, and how to mend it."""


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote."""

    kind: str
    tensors: int
    parameters: int
    dtype: str
    target: Path

    def __str__(self) -> str:
        return f"{self.kind}: {self.tensors} tensors, {self.parameters:,} parameters, {self.dtype} -> {self.target}"


def find_file(source: Path, names: Iterable[str]) -> Path:
    """`source` itself where it is a file, else the first of `names` (glob patterns) in the folder `source`.

    Raises:
        ConversionError: there is no such file.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise ConversionError(f"source={source} does not exist: give the official file, or the folder that holds it")
    for name in names:
        found = sorted(source.glob(name))
        if found:
            return found[0]
    raise ConversionError(f"source={source} holds none of {', '.join(names)}: give the official file itself")


def load_state(path: Path, unwrap: Iterable[str] = (), strip: str = "") -> dict[str, Tensor]:
    """Tensors of one checkpoint file (.pt, .pth, .bin or .safetensors; nothing but tensors is ever unpickled).

    Args:
        unwrap: Keys under which the tensors may lie ("state_dict", "model").
        strip: A prefix that some files put before every key ("module.").

    Raises:
        ConversionError: the file cannot be read as tensors.
    """
    try:
        state: Any = read_tensors(path)
    except CheckpointError as error:
        raise ConversionError(str(error)) from error
    for key in unwrap:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"{path} holds no mapping of names to tensors; is it the official file?")
    return {name.removeprefix(strip): value for name, value in state.items()}


def load_sharded(source: Path) -> dict[str, Tensor]:
    """Tensors of a model folder as transformers writes it: one weights file, or shards with an index.

    Files are mapped into memory, not read: a checkpoint of any size costs no memory until its tensors are used, and
    what has been written out again can be dropped by the system.

    Raises:
        ConversionError: there are no weights, a shard of the index is missing, or two shards hold one key.
    """
    index = next((path for name in INDEX_FILES if (path := source / name).is_file()), None)
    if index is None:
        return load_state(find_file(source, WEIGHT_FILES))
    files = sorted(set(read_json(index).get("weight_map", {}).values()))
    absent = [name for name in files if not (source / name).is_file()]
    if absent:
        raise ConversionError(f"{index} names {', '.join(absent)}, not there: fetch every shard of the checkpoint")
    state: dict[str, Tensor] = {}
    for name in files:
        shard = load_state(source / name)
        twice = sorted(set(shard) & set(state))
        if twice:
            raise ConversionError(f"{source / name} repeats {named(twice, 'of earlier shards')}")
        state.update(shard)
    return state


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ConversionError: the file is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConversionError(f"{path} is missing: the source folder must hold it beside the weights") from error
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def check_keys(found: Iterable[str], wanted: Iterable[str], source: Path) -> None:
    """Raises ConversionError, naming what is missing and what is surplus, unless both are the same set."""
    found, wanted = set(found), set(wanted)
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if missing or surplus:
        raise ConversionError(
            f"{source} is not the expected checkpoint: {named(missing, 'missing')}; {named(surplus, 'surplus')}"
        )


def named(keys: list[str], what: str) -> str:
    """ "3 keys missing (a, b, c)", cut after the first few."""
    if not keys:
        return f"no keys {what}"
    more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} keys {what} ({', '.join(keys[:SHOWN])}{more})"


def save_converted(
    kind: str, model: PreTrainedModel, state: Mapping[str, Tensor], source: Path, target: Path
) -> Summary:
    """Fills `model` (built on the meta device) with `state` and saves it with `save_pretrained`.

    Args:
        state: Tensors under the native names, every parameter and persistent buffer of `model` among them.
        source: Named in errors.

    Raises:
        ConversionError: names or shapes do not match those of the model.
        CheckpointError: a tensor holds NaN or infinity.
    """
    wanted = model.state_dict()
    check_keys(state, wanted, source)
    wrong = [
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if state[name].shape != tensor.shape
    ]
    if wrong:
        raise ConversionError(f"{source} does not fit its configuration: {'; '.join(wrong[:SHOWN])}")
    filled = {name: state[name] for name in tqdm(wanted, desc=f"converting {kind}", unit=" tensors", disable=None)}
    check_finite(filled.items(), str(source))
    model.load_state_dict(filled, assign=True)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in filled.values() if t.is_floating_point()})
    parameters = sum(p.numel() for p in model.parameters())
    return Summary(kind, len(filled), parameters, "+".join(dtypes), target)
