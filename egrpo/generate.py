"""`python -m egrpo.generate prompts=FILE`: images of prompts, that a stopped run goes on with.

Leaves in its folder: images/, sheets/, generations.jsonl (prompt, plan, file, seed, index), manifest.json, config.yaml.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from egrpo.entry import overrides, resume_in_folder, run, save_config
from egrpo.generation import (
    already_there,
    batches,
    chosen,
    fill,
    prompt_records,
    request_stamp,
    requests_for,
    summary,
)
from egrpo.policies import given_settings, load_policy, trained_settings, weights_stamp
from egrpo.rewards.placement import pick_device


def generate(cfg: DictConfig) -> None:
    """Reads prompts, loads the policy, draws what is missing, reports."""
    torch.set_num_threads(cfg.threads)
    folder, device = Path(cfg.run_dir), pick_device(cfg.model_device)
    prompts = OmegaConf.to_container(cfg.prompts) if OmegaConf.is_config(cfg.prompts) else cfg.prompts
    records = prompt_records(prompts)  # first: bad prompts are told before any model is loaded
    requests = requests_for(records, cfg.num_images)
    parts = batches(requests, cfg.batch_size, cfg.shard)
    if again := len(records) - len({record.prompt for record in records}):
        print(f"{again} of {len(records)} prompts stand there more than once: their images go on counting, and differ")
    trained = trained_settings(cfg.ckpt_path) if cfg.ckpt_path else {}
    given = given_settings(overrides())
    weights = weights_stamp(cfg.model, cfg.ckpt_path, given=given)
    stamp = request_stamp(weights, cfg.seed, OmegaConf.to_container(cfg.rollout, resolve=True), trained)
    if already_there(folder, requests, stamp, sheets=cfg.sheets):  # no model is loaded to find that out
        print(summary(0, len(requests), len(requests), 0.0))
        print(folder)
        return
    policy = load_policy(cfg.model, cfg.ckpt_path, given=given)
    settings = chosen(policy, cfg.seed, cfg.rollout, trained)
    policy.to(device)
    if str(cfg.shard).startswith("1/"):  # one of the parts that share the folder
        save_config(cfg, folder)
    print(f"{len(requests)} images into {folder} (after a stop, hydra.run.dir={folder} goes on)", flush=True)
    start = time.monotonic()
    label = str(cfg.ckpt_path or cfg.model.path)
    new, before = fill(folder, policy, label, settings, requests, parts, sheets=cfg.sheets, stamp=stamp)
    print(summary(new, before, len(requests), time.monotonic() - start))
    print(folder)


if __name__ == "__main__":
    run(generate, "generate", resume=resume_in_folder)
