"""`python -m egrpo.shapes.pretrain`: prompts, tokenizer, VQ codec and language model, from nothing.

Two processes side by side, a thread each: the codec, and the language model, whose codes are fixed from the start and
which therefore need not wait. Leaves in `target`: `prompts/`, `janus/` (what transformers loads), `verdict.json`.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.entry import run, save_config
from egrpo.shapes.pretrain.build import build_processor
from egrpo.shapes.pretrain.codec import measure_codec
from egrpo.shapes.pretrain.jobs import fresh_model, make_codec, make_language, one_thread
from egrpo.shapes.pretrain.measure import measure_model
from egrpo.shapes.prompts import make_splits
from egrpo.types import PromptRecord


def pretrain(cfg: DictConfig) -> None:
    """The whole pretraining; prints the verdict."""
    target = Path(cfg.target)
    save_config(cfg, target)
    splits = make_splits()
    write_prompts(target / "prompts" / "train.jsonl", splits["train"])
    held_out = splits["unseen_prompt"] + splits["unseen_composition"]
    write_prompts(target / "prompts" / "validation.jsonl", held_out + splits["seen"])

    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=one_thread) as pool:
        jobs = [pool.submit(make_codec, settings), pool.submit(make_language, settings)]
        codec, language = (job.result() for job in jobs)

    one_thread()
    model, tokenizer = fresh_model(settings)
    model.model.vqmodel.load_state_dict(codec["weights"])
    model.load_state_dict(language["weights"], strict=False)
    model.save_pretrained(target / "janus")
    build_processor(tokenizer).save_pretrained(target / "janus")

    policy = instantiate(cfg.model, path=str(target / "janus"))()
    verdict: dict[str, Any] = {
        "codec": measure_codec(policy.model.model.vqmodel),
        "policy": measure_model(policy, splits["unseen_prompt"]),
        "seconds": {"codec": codec["seconds"], **language["seconds"]},
        "seed": cfg.seed,
    }
    (target / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n")
    print(json.dumps(verdict, indent=2))
    print(target)


def write_prompts(path: Path, records: list[PromptRecord]) -> None:
    """JSON Lines in the schema of the T2I-R1 training file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records))


if __name__ == "__main__":
    run(pretrain, "pretrain")
