"""The two halves of pretraining, each a process of its own.

Not in `__main__`: a spawned process does not import the `__main__` of a package, and would find none of this there.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from egrpo.policy import Templates
from egrpo.shapes.pretrain.build import build_model, build_tokenizer
from egrpo.shapes.pretrain.codec import train_codec
from egrpo.shapes.pretrain.language import ExampleMaker, train_language


def make_codec(settings: dict[str, Any]) -> dict[str, Any]:
    """Trained VQ weights and their cost in seconds."""
    start = time.monotonic()
    model, _ = fresh_model(settings)
    train_codec(model.model.vqmodel, **settings["codec"], seed=settings["seed"])
    return {"weights": model.model.vqmodel.state_dict(), "seconds": time.monotonic() - start}


def make_language(settings: dict[str, Any]) -> dict[str, Any]:
    """All weights outside the VQ model, trained in two stages, and their cost in seconds."""
    start = time.monotonic()
    model, tokenizer = fresh_model(settings)
    templates = Templates(**settings["model"]["templates"])
    maker = ExampleMaker(tokenizer, templates, seed=settings["seed"], **settings["examples"])
    train_language(model, maker, **settings["clean"])
    clean = time.monotonic() - start
    train_language(model, maker, **settings["blur"])
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("model.vqmodel.")}
    return {"weights": weights, "seconds": {"clean": clean, "blur": time.monotonic() - start - clean}}


def fresh_model(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The untrained model and its tokenizer; equal settings give equal weights."""
    torch.manual_seed(settings["seed"])
    templates = Templates(**settings["model"]["templates"])
    texts = [templates.reasoning_text(""), templates.image_text("")]
    tokenizer = build_tokenizer(texts, settings["vocab_size"])
    return build_model(tokenizer, settings["text"], settings["vq"]), tokenizer


def one_thread() -> None:
    """Start of a process: one thread of torch, messages as they are."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
