"""Random numbers that belong to a sample, not to the batch it is drawn in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from egrpo.base.errors import UserError

EVALUATION_STEP = -1  # names the stream of validation and generation, apart from all training steps

SampleKey = tuple[int, int, str, int]  # seed, step, prompt, sample index within the prompt's group


def sample_keys(
    prompts: Sequence[str], group_size: int, seed: int, step: int, offsets: Sequence[int]
) -> list[SampleKey]:
    """Keys of the samples of B prompts, in group order; the samples of prompt b count from `offsets[b]`.

    Raises:
        UserError: there is nothing to draw.
    """
    if not prompts or group_size < 1:
        raise UserError("a rollout needs at least one prompt and a group size of at least 1")
    firsts = zip(prompts, offsets, strict=True)
    return [(seed, step, prompt, first + i) for prompt, first in firsts for i in range(group_size)]


def sample_uniforms(keys: Sequence[SampleKey], num_tokens: int, *, domain: str = "image") -> Tensor:
    """Uniform numbers, one stream a sample.

    A stream is set by its key and `domain` alone: it is the same in any batch, on any machine and for any
    `num_tokens` (a shorter draw is a prefix of a longer one). Text and image draw from different domains, so the
    length of a plan never shifts the image's numbers.

    Args:
        keys: N keys (seed, step, prompt, sample index).
        num_tokens: Numbers a sample.
        domain: Names the stream of a key.

    Returns:
        [N, num_tokens] float64 in [0, 1), on the CPU.
    """
    rows = np.empty((len(keys), num_tokens), dtype=np.float64)
    for row, (seed, step, prompt, index) in zip(rows, keys, strict=True):
        # JSON keeps the parts apart whatever the prompt holds; Python's hash() differs between processes.
        text = json.dumps([domain, int(seed), int(step), prompt, int(index)])
        digest = hashlib.sha256(text.encode()).digest()
        stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        stream.random(out=row)
    return torch.from_numpy(rows)
