"""Milliseconds an image token by every way of feeding tokens, beside what the memory's bandwidth allows.

    python -m experiments.speed.decoding shape=janus_pro_1b                   # on an accelerator
    python -m experiments.speed.decoding shape=janus_pro_7b dry_run=true      # the same code at tiny sizes, on a CPU

Settings are those of `python -m experiments.speed`, and `ways`, `context_tokens`, `repeats`.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from egrpo.policy import JanusPolicy
from egrpo.policy.capture import Steps
from egrpo.policy.drawing import Drawing
from egrpo.policy.sampling import draw_image_tokens
from experiments.speed.report import heading, told
from experiments.speed.subject import DEFAULTS, build_policy, configuration, read_records, read_settings

OWN = {"ways": ["eager", "static", "captured", "compiled"], "context_tokens": 140}


def main(arguments: list[str]) -> None:
    """Prints a line a way: set-up, milliseconds a token, times as fast as the first way, share of the limit."""
    settings = read_settings({**DEFAULTS, **OWN}, arguments)
    policy = build_policy(settings, configuration(settings), read_records(settings))
    print(heading(settings))
    limit = milliseconds_at_least(policy, settings)
    print(f"limit by memory: {limit:.3f} ms a token (weights and half of the final cache, read once)")
    print(f"{'way':10}{'first run s':>13}{'ms a token':>12}{'faster':>8}{'of the limit':>14}")
    first: float | None = None
    for way in settings.ways:
        steps = Steps(way)
        set_up = seconds(policy, settings, steps)
        runs = [seconds(policy, settings, steps) for _ in range(settings.repeats)]
        each = 1e3 * median(runs) / policy.num_image_tokens
        first = first or each
        print(f"{way:10}{set_up:13.2f}{each:12.3f}{first / each:8.2f}{limit / each:14.2f}", flush=True)


def seconds(policy: JanusPolicy, settings: Any, steps: Steps) -> float:
    """Of drawing one group's image tokens after contexts of different lengths."""
    rows, length = int(settings.group_size), int(settings.context_tokens)
    ids = torch.full((rows, length), policy.begin_of_image, device=policy.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    for row in range(rows):
        mask[row, : min(4 * row, length // 2)] = False
    numbers = torch.rand(rows, policy.num_image_tokens, dtype=torch.float64, device=policy.device)
    policy.eval()
    now(policy)
    start = time.perf_counter()
    draw_image_tokens(
        policy.backbone,
        ids,
        mask,
        numbers,
        num_tokens=policy.num_image_tokens,
        pad=policy.pad,
        how=Drawing(cfg_weight=float(settings.cfg_weight)),
        steps=steps,
    )
    return now(policy) - start


def milliseconds_at_least(policy: JanusPolicy, settings: Any) -> float:
    """A token's weights, and half of the final keys and values, over the bandwidth that a copy reaches."""
    own, config = policy.backbone, policy.model.config.text_config
    parts = (own.language_model.layers, own.generation_head, own.generation_aligner)
    weights = sum(p.nbytes for part in parts for p in part.parameters())
    rows = int(settings.group_size) * (2 if float(settings.cfg_weight) != 1 else 1)
    columns = int(settings.context_tokens) + policy.num_image_tokens / 2
    width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = rows * columns * width * own.lm_head.weight.element_size()  # type: ignore[union-attr, operator]
    return 1e3 * (weights + cache) / copied_bytes_a_second(policy)


def copied_bytes_a_second(policy: JanusPolicy) -> float:
    """Bytes read and written by a copy that fits no cache; median of ten."""
    source = torch.empty(2**30 if policy.device.type == "cuda" else 2**27, dtype=torch.uint8, device=policy.device)
    target, rates = torch.empty_like(source), []
    for _ in range(12):
        start = now(policy)
        target.copy_(source)
        rates.append(2 * len(source) / (now(policy) - start))
    return median(rates[2:])


def now(policy: JanusPolicy) -> float:
    """Seconds, once the device has done what it was given."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    told(main)
