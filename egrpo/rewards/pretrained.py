"""What rewards with a transformers model share: loading it whole or not at all, and checking what they are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from egrpo.base.errors import UserError
from egrpo.rewards.placement import home_of, pick_device
from egrpo.tensor_files import check_finite, check_model_folder, loading_model


def load_model(kind: Any, folder: Path, reward: str, device: str = "cpu", offload: bool = False) -> Any:
    """`kind.from_pretrained(folder)`, from local files alone; `kind` is a transformers model class.

    The weights are memory-mapped. On a GPU they are copied there tensor by tensor, and this process keeps none; on a
    CPU they stay pages of their file, which all processes share as long as their type is not changed.

    Args:
        device, offload: As `Placement` takes them.

    Raises:
        UserError: the folder holds another architecture, or its weights lack some of the model's tensors, which
            transformers would fill with random numbers, are damaged, or hold NaN or infinity.
    """
    check_model_folder(folder)
    wanted, found = kind.config_class.model_type, json.loads((folder / "config.json").read_text()).get("model_type")
    if found != wanted:
        raise UserError(
            f"the {reward} reward needs a model of type {wanted}, and {folder} holds one of type {found}: name another "
            f"folder with reward.{reward}.reward.path=..."
        )
    home = home_of(pick_device(device), offload)
    place = {} if home.type == "cpu" else {"device_map": {"": home}}
    with loading_model(folder):
        model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **place)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"the weights in {folder} lack {len(missing)} tensors of the {reward} reward's model, the first "
            f"{missing[0]}: fetch or convert the checkpoint again"
        )
    check_finite(model.named_parameters(), str(folder))
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a directory, from local files alone."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_image_processor(folder: Path) -> Any:
    """The image processor of a directory, from local files alone, in the form that needs PIL and numpy only."""
    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")


def unicode_text(text: str) -> str:
    """`text` of equal length with ? for each half of a surrogate pair, at which the tokenizers would raise."""
    return text.encode("utf-8", "replace").decode()
