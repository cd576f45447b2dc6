"""Which values a key takes: by the annotation of what receives it, by what its yaml holds, and by its name's range."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Temperature = Annotated[float, Field(ge=1e-4, le=1e4)]  # beyond, logits over- or underflow

# Ranges by the last part of a key, or its last two, the same in every node of every command; `null` only where the
# key's own type or its yaml has it. What a single key needs beyond these, the class that receives it checks.
RANGES: dict[str, Any] = {
    "seed": Seed,
    "seeds": Annotated[list[Seed], Field(min_length=1)],
    "rollout.temperature": Temperature,
    "baseline_temperatures": list[Temperature],
    "group_size": Annotated[int, Field(ge=2)],
    "cfg_weight": Annotated[float, Field(ge=0, le=1000)],
    "top_p": Annotated[float, Field(gt=0, le=1)],
    **dict.fromkeys(("lr", "muon_lr", "adamw_lr", "beta", "weight_decay", "kappa"), NotNegative),
    **dict.fromkeys(("bonus_scale", "bonus_cap", "backoff", "prompt_price", "completion_price"), NotNegative),
    **dict.fromkeys(("max_grad_norm", "eps", "timeout", "alpha", "clip_high"), Positive),
    **dict.fromkeys(
        ("compute_efficiency", "memory_efficiency", "launch_ms", "host_link_gb_s", "longest_plan"), Positive
    ),
    **dict.fromkeys(("memory_gb", "bandwidth_gb_s", "link_gb_s"), Positive),
    **dict.fromkeys(("high_fraction", "low_fraction", "fraction", "decay", "dropout", "stratum_quantile"), Share),
    **dict.fromkeys(("unconditional", "planless", "spoiled_plans", "spoiled_images", "image_share"), Share),
    **dict.fromkeys(("threshold", "counting_threshold"), Share | str),
    **dict.fromkeys(("batch_size", "val_batch_size", "micro_batch_size", "decode_batch", "chunk_size"), Count),
    **dict.fromkeys(("prompts_per_step", "updates_per_rollout", "top_k", "num_images", "images_per_prompt"), Count),
    **dict.fromkeys(("num_prompts", "plans_per_prompt", "images_per_plan", "plain_images", "processes"), Count),
    **dict.fromkeys(("max_plan_tokens", "max_prompt_tokens", "num_image_tokens", "limit", "held_out"), Count),
    **dict.fromkeys(("num_nodes", "num_samples", "resamples", "trials", "jobs", "concurrency", "r"), Count),
    **dict.fromkeys(("max_tokens", "vocab_size", "log_every_n_steps", "n_jobs"), Count),
    **dict.fromkeys(("num_warmup_steps", "num_training_steps", "every_n_train_steps", "retries", "digits"), Natural),
    **dict.fromkeys(("n_startup_trials", "n_warmup_steps"), Natural),
    "threads": Annotated[int, Field(ge=1, le=4096)],
    "max_steps": Annotated[int, Field(ge=-1)],
    "save_top_k": Annotated[int, Field(ge=-1)],
    "splits": list[str] | None,
}
# Keys that name a file or a folder: an empty one would be the current folder.
PLACES = (
    *("run_dir", "target", "folder", "source", "run", "sweep", "path", "ckpt_path", "prompts", "train", "val"),
    *("reward_models", "failures", "dirpath", "save_dir", "default_root_dir", "reasoning_file", "function"),
    *("published", "clip", "base", "checkpoint"),
)
OPAQUE: Any = object()  # a type that no plain value has: an object that a node of its own builds
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
PLAIN = (int, float, bool, str, None, types.NoneType)
LISTS = (list, Sequence, Iterable, Collection, set, frozenset)


def fault(key: str, value: Any, annotation: Any = Any, values: Sequence[Any] = ()) -> str | None:
    """What is wrong with a value, as one sentence; None = nothing.

    Args:
        key: Its dotted name.
        value: Plain: numbers, texts, None, lists and dictionaries of these.
        annotation: Of the parameter that receives it; `Any` where there is none.
        values: What yaml files of this project have there.
    """
    if (strange := _not_finite(value)) is not None:
        return f"{key}={_shown(strange)}: give a finite number"
    name = key.rpartition(".")[2]
    if name in PLACES and isinstance(value, str) and not value.strip():
        return f"{key}= is empty (a variable that is not set?): name the file or folder, for here give {key}=."
    range_ = RANGES.get(".".join(key.split(".")[-2:]), RANGES.get(name))
    adapter, told = _adapter(_wanted(range_, annotation, values))
    try:
        adapter.validate_json(json.dumps(value, default=str))
    except ValidationError:
        return f"{key}={_shown(value)}: give {told}{_hint(value, told)}"
    return None


def _wanted(range_: Any, annotation: Any, values: Sequence[Any]) -> Any:
    base = plain(annotation)
    if base is Any:
        base = _type_of(values)
    members = list(_members(base))
    if None in values or (base is Any and range_ is None):
        members.append(None)  # what must be set, its class asks for
    if range_ is not None:
        replaced = (int, float, Any, *([list[Any], list[int], list[float]] if _is_list(range_) else []))
        members = [range_, *(m for m in members if m not in replaced)]
    return Any if Any in members else Union[tuple(members)]  # noqa: UP007 - made from a list


def _is_list(annotation: Any) -> bool:
    return list in (typing.get_origin(annotation), *map(typing.get_origin, typing.get_args(annotation)))


def plain(annotation: Any) -> Any:
    """An annotation without what only objects can be: `float | Tensor` -> `float`; `Any` where nothing is left."""
    found = _plain(annotation)
    return Any if found is OPAQUE else found


def _plain(annotation: Any) -> Any:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in PLAIN or origin is Literal:
        return annotation
    if origin is Annotated:
        inner = _plain(parts[0])
        return inner if inner in (Any, OPAQUE) else Annotated[inner, *parts[1:]]
    if origin in (Union, types.UnionType):
        members = [m for m in map(_plain, parts) if m is not OPAQUE]
        some = [m for m in members if m not in (None, types.NoneType)]
        return Any if Any in members or not some else Union[tuple(members)]  # noqa: UP007
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return tuple[tuple(plain(p) for p in parts)]  # type: ignore[misc]
    if origin in (*LISTS, tuple) or annotation in LISTS:
        return list[plain(parts[0]) if parts else Any]  # type: ignore[misc]
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return dict[str, plain(parts[1]) if parts else Any]  # type: ignore[misc]
    if isinstance(annotation, type) and annotation is not object:
        return str if issubclass(annotation, PurePath) else OPAQUE
    return Any


def _type_of(values: Sequence[Any]) -> Any:
    """The type of what yaml files hold at a key; `Any` where they hold nothing that tells one."""
    kinds = {type(v) for v in values if not (isinstance(v, str) and ("${" in v or v == "???"))}
    if not kinds - {types.NoneType} or kinds - {int, float, bool, str, list, types.NoneType}:
        return Any
    return Union[tuple(list[Any] if kind is list else kind for kind in kinds)]  # noqa: UP007


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)


@cache
def _adapter(wanted: Any) -> tuple[TypeAdapter[Any], str]:
    adapter: TypeAdapter[Any] = TypeAdapter(wanted, config=STRICT)
    return adapter, _told(adapter.json_schema())


def _told(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: "a whole number from 2 on, or null"."""
    if options := schema.get("anyOf"):
        told = list(dict.fromkeys(_told(option) for option in sorted(options, key=lambda o: o.get("type") == "null")))
        return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} or {told[-1]}"
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(_shown(v) for v in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"a list of {len(schema['prefixItems'])}: {', '.join(map(_told, schema['prefixItems']))}"
        inner = _told(schema.get("items", {}))
        some = "a list that is not empty" if schema.get("minItems") else "a list"
        return some if inner == "a value" else f"{some}, each {inner}"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "string":
        return "text"
    return {"boolean": "true or false", "null": "null", "object": "a mapping"}.get(str(kind), "a value")


def _range(schema: Mapping[str, Any]) -> str:
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if high is None:
        return f" from {low:g} on" if low is not None else f" above {above:g}" if above is not None else ""
    return f" from {low:.10g} to {high:.10g}" if low is not None else f" above {above:g} and up to {high:g}"


def _hint(value: Any, told: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"; a number as text is written '\"{value}\"'" if number and told.startswith("text") else ""


def _not_finite(value: Any) -> float | None:
    """The first number within that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for v in inner if (found := _not_finite(v)) is not None), None)


def _shown(value: Any) -> str:
    """A value as a command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value).replace("e+", "e")
    return text if len(text) <= 80 else text[:77] + "..."
