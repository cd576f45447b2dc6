"""Operations and passes of one step on one device, by phase, as torch's FlopCounterMode counts matrix products.

A linear layer takes 2 x weights a token forward and as many for each of its two gradients. Attention takes 4 x A
operations a layer and pair of positions (all pairs of a pass: causality is not counted), 2.5 times that backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from egrpo.algorithm.heads import even_rows
from egrpo.planning.activations import kv_cache_bytes, scored_tokens
from egrpo.planning.architecture import Architecture, Matmul
from egrpo.planning.workload import Lengths, Workload

ATTENTION_BACKWARD = 2.5  # scores again, then gradients of scores, q, k, v: five products for two


@dataclass(frozen=True)
class Effort:
    """Operations of a phase, and what keeps it from reaching the peak.

    Args:
        flops: Operations.
        passes: Forward and backward passes through the language model, one after another.
        bytes: Moved between memory and processor, where a phase is bound by that: weights and caches read.
        reading: Of the operations those of whole prompts, before tokens are drawn one at a time.
    """

    flops: float
    passes: float = 0
    bytes: float = 0
    reading: float = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.flops + other.flops,
            self.passes + other.passes,
            self.bytes + other.bytes,
            self.reading + other.reading,
        )


def attention(arch: Architecture, rows: int, pairs: float) -> float:
    """Of all layers, for `pairs` of positions a row."""
    return 4 * arch.heads * arch.head_dim * arch.layers * rows * pairs


def drawing(
    arch: Architecture, rows: int, read: int, context: int, steps: int, own: float, head: int, width: int
) -> Effort:
    """`steps` tokens of `rows` sequences after `read` distinct contexts.

    The first token comes from the contexts' pass, so one pass less is made than tokens are drawn.

    Args:
        own: Operations of a token outside the layers.
        head: Weights that a token reads outside the layers.
        width: The cache is read in multiples of so many columns.
    """
    layers = 2 * arch.layer_matmul.weights
    first = layers * read * context + attention(arch, read, context**2)
    lengths = sum(range(context + 1, context + steps))
    later = layers * rows * (steps - 1) + attention(arch, rows, lengths)
    weights = (arch.layer_matmul.weights + head) * arch.dtype.itemsize
    columns = lengths + (width - 1) / 2 * (steps - 1)
    cache = kv_cache_bytes(arch, rows, 1) * columns
    return Effort(first + later + own * steps, steps, weights * steps + cache, first)


def plans(arch: Architecture, work: Workload, lengths: Lengths, width: int = 1) -> Effort:
    """Drawing all plans; a chunk goes on until its longest plan ends."""
    total = Effort(0)
    for chunk in work.chunks:
        rows, (read, _) = len(chunk), work.prefill_rows(chunk)
        head = 2 * arch.text_matmul.weights * rows
        weights = arch.text_matmul.weights
        total += drawing(arch, rows, read, lengths.prompt, lengths.plan, head, weights, width)
    return total


def images(arch: Architecture, work: Workload, lengths: Lengths, width: int = 1) -> Effort:
    """Drawing all image tokens; rows are doubled by guidance."""
    total = Effort(0)
    tokens = work.image_tokens
    for chunk in work.chunks:
        rows, (_, read) = len(chunk) * work.cfg_factor, work.prefill_rows(chunk)
        head = 2 * arch.image_matmul.weights * rows + 2 * arch.align_matmul.weights * len(chunk) * (tokens - 1) / tokens
        weights = arch.image_matmul.weights + arch.align_matmul.weights
        total += drawing(arch, rows, read, lengths.image_context, tokens, head, weights, width)
    return total


def pixels(arch: Architecture, work: Workload) -> Effort:
    """Decoding all images."""
    return Effort(work.rows * arch.decode_flops)


def scoring(arch: Architecture, work: Workload, lengths: Lengths, reference: bool = False) -> Effort:
    """One teacher-forced forward pass over everything drawn, of the policy or of the reference.

    A reference without weights of its own is the policy with its adapter off.
    """
    text, image = scored_tokens(work, lengths)
    rows, images = work.rows, work.rows * work.score_factor
    weights = arch.layer_matmul.weights
    if reference and not arch.reference_bytes:
        weights -= arch.layer_matmul.trained
    flops = 2.0 * weights * (rows * text + images * image)
    flops += attention(arch, rows, text**2) + attention(arch, images, image**2)
    flops += 2 * sum(head.weights * tokens for head, tokens in _heads(arch, work, lengths))
    if not reference and arch.layers_have_gradient:  # frozen heads have theirs taken at once
        flops += 2 * sum(head.weights * tokens for head, tokens in _heads(arch, work, lengths) if not head.trained)
    flops += 2 * arch.align_matmul.weights * images * (work.image_tokens - 1)
    return Effort(flops, work.micro_batches * (1 + work.cot))


def padding(arch: Architecture, work: Workload, lengths: Lengths) -> Effort:
    """The policy's entropies of whole plans, padding included, where the entropy policy ranks it."""
    text, _ = scored_tokens(work, lengths)
    flops = 2.0 * arch.layer_matmul.weights * work.rows * text + attention(arch, work.rows, text**2)
    return Effort(flops + 2 * arch.text_matmul.weights * work.rows * lengths.plan, work.micro_batches)


def backward(arch: Architecture, work: Workload, lengths: Lengths) -> Effort:
    """Gradients of one forward pass, with all that checkpointing computes again; of trained heads too."""
    text, image = scored_tokens(work, lengths)
    rows, images = work.rows, work.rows * work.score_factor
    tokens, pairs = rows * text + images * image, rows * text**2 + images * image**2
    heads = _heads(arch, work, lengths)
    (text_head, plan), (image_head, codes) = heads
    first = (
        plan - even_rows(round(plan / work.micro_batches), work.chunk_size) * work.micro_batches
    )  # one chunk is kept
    flops = 2.0 * (text_head.weights * max(first, 0) * bool(text_head.trained) + image_head.trained * codes)
    flops += sum(2 * head.trained * count for head, count in heads)
    passes = work.micro_batches * (1 + work.cot)
    if arch.layers_have_gradient:
        layers = arch.layer_matmul
        flops += 2 * sum(head.weights * count for head, count in heads if head.trained)
        flops += 2 * (layers.weights + layers.trained) * tokens
        flops += ATTENTION_BACKWARD * attention(arch, 1, pairs)
        flops += 2 * arch.align_matmul.trained * images * (work.image_tokens - 1)
        if arch.checkpointing:
            flops += 2 * (layers.weights - arch.skipped_matmul) * tokens + attention(arch, 1, pairs)
    return Effort(flops, 2 * passes)


def _heads(arch: Architecture, work: Workload, lengths: Lengths) -> list[tuple[Matmul, float]]:
    """Both heads and the counted positions that they score."""
    plan = work.rows * lengths.plan_mean if work.cot else 0.0
    return [(arch.text_matmul, plan), (arch.image_matmul, work.rows * work.score_factor * work.image_tokens)]
