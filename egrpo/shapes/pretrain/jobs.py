"""The two halves of pretraining, each a process of its own.

Not in `__main__`: a spawned process does not import the `__main__` of a package, and would find none of this there.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
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
    """All weights outside the VQ model, trained in two stages, and their cost in seconds.

    The first stage's weights stay in the target folder as `clean.pt`; where they are there already, only the second
    stage runs, and gives what the whole would have given.
    """
    model, tokenizer = fresh_model(settings)
    templates = Templates(**settings["model"]["templates"])
    kept = Path(settings["target"]) / "clean.pt"
    seconds = {}
    for stage, seed in (("clean", settings["seed"]), ("blur", settings["seed"] + 1)):
        start = time.monotonic()
        if stage == "clean" and kept.exists():
            model.load_state_dict(torch.load(kept, weights_only=True))
            continue
        maker = ExampleMaker(tokenizer, templates, seed=seed, **settings["examples"])
        train_language(model, maker, **settings[stage])
        seconds[stage] = time.monotonic() - start
        if stage == "clean":
            torch.save(model.state_dict(), kept)
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
