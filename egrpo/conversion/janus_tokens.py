"""Janus's tokenizer and image processor: the original's files -> JanusProcessor, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import AddedToken, JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from egrpo.conversion.checkpoints import ConversionError, read_json
from egrpo.conversion.janus_config import TokenIds

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
IMAGES, PROCESSOR = "preprocessor_config.json", "processor_config.json"
FILES = (TOKENIZER, SETTINGS, SPECIAL, IMAGES, PROCESSOR)

# VLChatProcessor's defaults; processor_config.json may say otherwise.
TAGS = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<begin_of_image>",
    "image_end_tag": "<end_of_image>",
    "pad_tag": "<｜▁pad▁｜>",
}
IMAGE_KEYS = ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor")


def read_tokenizer(source: Path) -> PreTrainedTokenizerFast | None:
    """The original's tokenizer with the image tokens by name; None where `source` holds no file of one.

    Its padding token is the one that the original puts in the place of the prompt in unconditional rows (pad_tag),
    which need not be what the tokenizer's own files call padding.

    Raises:
        ConversionError: tokenizer.json is missing or unreadable, or lacks a token.
    """
    path = source / TOKENIZER
    if not path.is_file():
        if (source / SETTINGS).is_file():
            raise ConversionError(f"{source} has {SETTINGS} but no {TOKENIZER}: fetch all files of the tokenizer")
        return None
    tags, settings = _tags(source), _optional(source / SPECIAL) | _optional(source / SETTINGS)
    try:
        # By the file itself: LlamaTokenizerFast, as the original names it, would build another one since
        # transformers 5.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ConversionError(f"{path} is no tokenizer: {error}") from error
    pad = tags["pad_tag"] if tags["pad_tag"] in tokenizer.get_vocab() else _text(settings.get("pad_token"))
    special = {
        "bos_token": _text(settings.get("bos_token")),
        "eos_token": _text(settings.get("eos_token")),
        "pad_token": pad,
    }
    special |= {"boi_token": tags["image_start_tag"], "eoi_token": tags["image_end_tag"]}
    lacking = [f"{name} ({text})" for name, text in special.items() if text not in tokenizer.get_vocab()]
    if lacking:
        raise ConversionError(f"{path} does not know {', '.join(lacking)}: is it the tokenizer of this checkpoint?")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        model_max_length=settings.get("model_max_length"),
        extra_special_tokens={
            "boi_token": special.pop("boi_token"),
            "eoi_token": special.pop("eoi_token"),
            # The original adds this one itself where it is missing.
            "image_token": AddedToken(tags["image_tag"], special=True, normalized=False),
        },
        **special,
    )
    if settings.get("add_bos_token", True):
        _begin_with_bos(tokenizer)
    return tokenizer


def _begin_with_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """As Llama's tokenizers do by a setting of their own, which tokenizer.json need not hold."""
    bos, bos_id = str(tokenizer.bos_token), int(tokenizer.bos_token_id)
    if list(tokenizer("a")["input_ids"])[:1] != [bos_id]:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
        )


def token_ids(tokenizer: Any) -> TokenIds:
    """Ids by the native tokenizer; None for an image token that it does not know."""
    placeholder, begin, end = (tokenizer.get_vocab().get(name) for name in image_tokens(tokenizer))
    return TokenIds(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, begin, end, placeholder)


def image_tokens(tokenizer: Any) -> tuple[str, str, str]:
    """Placeholder, begin and end of an image, as the tokenizer names them or else as the original does."""
    names = {"image_token": "image_tag", "boi_token": "image_start_tag", "eoi_token": "image_end_tag"}
    placeholder, begin, end = (getattr(tokenizer, name, None) or TAGS[tag] for name, tag in names.items())
    return placeholder, begin, end


def native_processor(tokenizer: PreTrainedTokenizerFast, config: Any, source: Path) -> JanusProcessor:
    """Tokenizer and image processor together; AutoProcessor loads it without torchvision."""
    given = _optional(source / IMAGES)
    side = given.get("image_size", config.vision_config.image_size)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | {key: given[key] for key in IMAGE_KEYS if key in given}
    images = JanusImageProcessorPil(size={"height": side, "width": side}, **pixels)
    return JanusProcessor(images, tokenizer, num_image_tokens=config.vision_config.num_image_tokens)


def original_files(processor: Any, tokenizer: Any, config: Any) -> dict[str, dict[str, Any]]:
    """Content of the original's JSON files beside tokenizer.json, for VLChatProcessor.

    Args:
        processor: JanusProcessor, or None where there is the tokenizer alone (the image processor is then left out).
        tokenizer: The native one.
    """
    special = {key: getattr(tokenizer, key) for key in ("bos_token", "eos_token", "pad_token")}
    tags = (*image_tokens(tokenizer), tokenizer.pad_token)
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False}
    files: dict[str, dict[str, Any]] = {
        SPECIAL: {**special, "additional_special_tokens": list(tags[:3])},
        SETTINGS: {**special, **settings, "model_max_length": tokenizer.model_max_length},
        PROCESSOR: {
            "processor_class": "VLChatProcessor",
            "num_image_tokens": config.vision_config.num_image_tokens,
            "sft_format": "deepseek",
            "add_special_token": False,
            "mask_prompt": True,
            "ignore_id": -100,
            **dict(zip(TAGS, tags, strict=True)),
        },
    }
    if processor is not None:
        images = processor.image_processor
        files[IMAGES] = {
            "processor_class": "VLChatProcessor",
            "image_processor_type": "VLMImageProcessor",
            "image_size": images.size["height"],
            "background_color": list(images.background_color),
            **{key: getattr(images, key) for key in IMAGE_KEYS},
        }
    return files


def _tags(source: Path) -> dict[str, str]:
    given = _optional(source / PROCESSOR)
    return {name: str(given.get(name, default)) for name, default in TAGS.items()}


def _text(token: Any) -> str | None:
    """A token's text, which files give plain or as the content of an object."""
    return token.get("content") if isinstance(token, Mapping) else token


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
