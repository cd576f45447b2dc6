"""Reading a native Janus checkpoint, choosing what of it is trained, and its weights as a plain model has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoProcessor, AutoTokenizer, JanusForConditionalGeneration, PreTrainedConfig

from egrpo.base.errors import MissingFileError, UserError
from egrpo.paths import resolve
from egrpo.policy.deferred import empty_janus, is_deferring
from egrpo.tensor_files import check_finite, check_model_folder, loading_model

BEGIN_OF_IMAGE = "<begin_of_image>"


def load_janus(path: str | Path, dtype: str = "float32", attn_implementation: str = "sdpa") -> tuple[Any, Any]:
    """Loads a native Janus checkpoint and its processor.

    Args:
        path: Folder in the format of transformers, `package:egrpo/...` for one in the package, or a name on the hub.
        dtype: "float32", "bfloat16", ... or "auto".
        attn_implementation: As in transformers.

    Returns:
        JanusForConditionalGeneration, and JanusProcessor or the tokenizer alone.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        UserError: It is not a complete native Janus checkpoint, is damaged, or has no tokenizer.
    """
    path = str(resolve(path))
    check_model_folder(Path(path))
    _check_is_janus(path)
    kind = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if not (kind == "auto" or isinstance(kind, torch.dtype)):
        raise UserError(f"dtype must be a torch type like float32 or bfloat16, or auto, not {dtype!r}")
    if is_deferring():
        return empty_janus(path, kind, attn_implementation), _load_processor(path)
    with loading_model(path):
        loaded: Any = JanusForConditionalGeneration.from_pretrained(
            path, dtype=kind, attn_implementation=attn_implementation, output_loading_info=True
        )
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"the Janus checkpoint at {path} lacks {len(missing)} weights, {missing[0]} among them")
    check_finite(model.named_parameters(), path)
    return model, _load_processor(path)


def _load_processor(path: str) -> Any:
    for kind in (AutoProcessor, AutoTokenizer):  # the tokenizer alone serves too: drawing needs no image processor
        try:
            return kind.from_pretrained(path)
        except (OSError, ValueError) as error:
            fault = error
    raise UserError(f"the Janus checkpoint at {path} has no tokenizer that transformers can load") from fault


def _check_is_janus(path: str) -> None:
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except OSError as error:
        raise MissingFileError(
            f"no Janus checkpoint at {path}: neither a folder with a config.json nor a name on the hub within reach; "
            "fetch one with python -m egrpo.download what=janus_pro_1b or janus_pro_7b, or name one with model.path=..."
        ) from error
    kind = config.get("model_type")
    if kind == "multi_modality":
        raise UserError(
            f"{path} is a Janus checkpoint in the original format: convert it first with"
            f" python -m egrpo.convert kind=janus source={path} target=FOLDER"
        )
    if kind != "janus":
        raise UserError(f"{path} is not a Janus checkpoint: its config.json says model_type {kind!r}")


def begin_of_image_token(model: Any, tokenizer: Any) -> int:
    """Id by the model's config, its generation config, or the tokenizer, in this order.

    Raises:
        UserError: None of them knows it.
    """
    kwargs = getattr(model.generation_config, "generation_kwargs", None) or {}
    for boi in (getattr(model.config, "boi_token_id", None), kwargs.get("boi_token_id")):
        if boi is not None:
            return int(boi)
    token = getattr(tokenizer, "boi_token", None) or BEGIN_OF_IMAGE
    boi = tokenizer.convert_tokens_to_ids(token)
    if boi is None or boi == tokenizer.unk_token_id:
        raise UserError(f"neither the model's config nor its tokenizer knows the begin-of-image token {token}")
    return int(boi)


def freeze_all_but(model: nn.Module, trainable: Sequence[str]) -> None:
    """Freezes every parameter but those of the named modules; published: "language_model" and "lm_head".

    Args:
        model: Changed in place.
        trainable: Names of modules, whole or by their ends ("generation_head" is "model.generation_head").

    Raises:
        UserError: A name matches no module.
    """
    chosen: list[nn.Module] = []
    for name in trainable:
        found = [part for path, part in model.named_modules() if path == name or path.endswith("." + name)]
        if not found:
            raise UserError(f"trainable names {name!r}, but the model has no such module")
        chosen += found
    model.requires_grad_(False)
    for part in chosen:
        part.requires_grad_(True)


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters: their updates added to the weights, under the names of a plain model.

    The model itself is left as it is.
    """
    merged = {}
    layers: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    for key, value in model.state_dict().items():
        owner, _, rest = key.rpartition(".base_layer.")
        if owner in layers:
            if rest == "weight":
                deltas = [layers[owner].get_delta_weight(name) for name in layers[owner].active_adapters]
                value = sum(deltas, start=value.float()).to(value.dtype)
            merged[f"{owner}.{rest}"] = value
        elif not any(key.startswith(f"{name}.lora_") for name in layers):
            merged[key] = value
    return merged
