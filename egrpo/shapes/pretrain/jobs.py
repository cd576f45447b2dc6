"""The two halves of pretraining, each a process of its own.

Not in `__main__`: a spawned process does not import the `__main__` of a package, and would find none of this there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from egrpo.policy import Templates
from egrpo.shapes.pretrain.build import build_model, build_tokenizer
from egrpo.shapes.pretrain.codec import train_codec
from egrpo.shapes.pretrain.language import ExampleMaker, train_language
from egrpo.tensor_files import read_tensors


def make_codec(settings: dict[str, Any]) -> dict[str, Any]:
    """Trained VQ weights and their cost in seconds."""
    start = time.monotonic()
    model, _ = fresh_model(settings)
    train_codec(model.model.vqmodel, **settings["codec"], seed=settings["seed"])
    return {"weights": model.model.vqmodel.state_dict(), "seconds": time.monotonic() - start}


def make_language(settings: dict[str, Any]) -> dict[str, Any]:
    """All weights outside the VQ model, trained stage by stage, and the cost of each in seconds.

    What a stage ends with is kept beside the target folder, under a name that its settings and those of the stages
    before decide. Where it is there already, the stage is passed over, and the result is the same.
    """
    model, tokenizer = fresh_model(settings)
    templates = Templates(**settings["model"]["templates"])
    seconds = {}
    history = json.dumps({name: settings[name] for name in ("seed", "text", "vq", "vocab_size", "examples", "model")})
    for number, (stage, recipe) in enumerate(settings["stages"].items()):
        history += json.dumps([stage, recipe])
        kept = Path(settings["target"]).parent / f"{stage}_{hashlib.sha256(history.encode()).hexdigest()[:12]}.pt"
        if kept.exists():
            model.load_state_dict(read_tensors(kept))
            continue
        start = time.monotonic()
        maker = ExampleMaker(tokenizer, templates, seed=settings["seed"] + number, **settings["examples"])
        train_language(model, maker, **recipe)
        seconds[stage] = time.monotonic() - start
        partial = kept.with_suffix(".partial")
        torch.save(model.state_dict(), partial)
        partial.replace(kept)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("model.vqmodel.")}
    return {"weights": weights, "seconds": seconds}


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
