"""A random checkpoint of Janus-Pro's exact shapes in the original format, and its conversion to the native one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from egrpo.conversion import janus, janus_original
from egrpo.paths import config_dir, resolve

TOKENIZER = "package:egrpo/shapes/assets/janus"  # any tokenizer does: random weights know no words


def make(size: str, folder: Path, through_original: bool = True, seed: int = 0) -> dict[str, Any]:
    """Leaves `folder/original` and `folder/native`; what is there is taken as it is.

    Args:
        size: "1b" or "7b", a file conf/architecture/janus_pro_SIZE.yaml.
        through_original: False = `folder/native` is written as it is, and nothing is converted.

    Returns:
        seconds of each part, and bytes of the weights.
    """
    original, native = folder / "original", folder / "native"
    report: dict[str, Any] = {}
    if not through_original and not (native / "config.json").exists():
        random_native(size, native, seed)
    if not (native / "config.json").exists() and not (original / "config.json").exists():
        start = time.perf_counter()
        random_native(size, folder / "random", seed)
        report["seconds_random"] = time.perf_counter() - start
        start = time.perf_counter()
        print(janus_original.convert(folder / "random", original), flush=True)
        report["seconds_to_original"] = time.perf_counter() - start
    if not (native / "config.json").exists():
        start = time.perf_counter()
        print(janus.convert(original, native), flush=True)
        report["seconds_to_native"] = time.perf_counter() - start
    report["bytes"] = sum(path.stat().st_size for path in native.glob("*.safetensors"))
    return report


def random_native(size: str, folder: Path, seed: int) -> None:
    """A native directory with random bfloat16 weights and the shapes world's tokenizer."""
    architecture: Any = OmegaConf.load(Path(config_dir()) / "architecture" / f"janus_pro_{size}.yaml")
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    settings: Any = OmegaConf.to_container(architecture.config)
    settings["text_config"] |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = JanusConfig(**settings, image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"))
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # random numbers are the slow part
        model: Any = JanusForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    images = JanusImageProcessorPil(size=side, min_size=14, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    JanusProcessor(images, tokenizer, num_image_tokens=576).save_pretrained(folder)
