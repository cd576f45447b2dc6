"""Bytes of activations, logits and key/value caches, as egrpo/policy and transformers' Llama allocate them.

Legend: b bytes of an activation, w = max(b, 4) of those that RMSNorm raises to float32; D hidden, F intermediate width,
A heads x head width; M tokens of a pass, in N rows of S.
"""

from __future__ import annotations

from egrpo.algorithm.heads import even_rows
from egrpo.planning.architecture import Architecture, Matmul
from egrpo.planning.workload import Lengths, Workload

SOFTMAX_COPIES = 1  # of a chunk's logits, in float32: log-probabilities, which become probabilities
# Where torch computes a chunk again (a trained head that is no linear layer): logits, log-probabilities, gradients.
CHECKPOINT_COPIES = 3
# Of one position's logits while drawing, bytes a token of the vocabulary: float64 probabilities, their sums, the sums
# of possible tokens, and a mask.
DRAW_BYTES = 25


def kv_cache_bytes(arch: Architecture, rows: int, tokens: int) -> int:
    """Keys and values of all layers: `BufferedLayer` allocates rows x heads x tokens x head width, twice."""
    return 2 * arch.layers * rows * arch.key_heads * tokens * arch.head_dim * arch.width


def mask_bytes(arch: Architecture, rows: int, tokens: int) -> int:
    """The attention bias that sdpa makes of a padding mask, [N, 1, S, S], in every layer's call."""
    return rows * tokens**2 * arch.width


def layer_bytes(arch: Architecture, rows: int, tokens: int, masked: bool) -> int:
    """What one layer saves for its backward pass; padding on the right needs no mask."""
    b, wide = arch.width, max(arch.width, 4)
    attended = arch.heads * arch.head_dim
    norm = arch.hidden * (wide + b * arch.norms_trained + b) + 4
    # q, k, v and the output; grouped keys and values are repeated for all heads before attention; log-sum-exp.
    attention = 4 * attended * b + 4 * arch.heads
    mlp = 4 * arch.intermediate * b  # gate, its activation, up, their product
    return rows * tokens * (2 * norm + attention + mlp + arch.adapter_rank * b) + masked * mask_bytes(
        arch, rows, tokens
    )


def forward_bytes(arch: Architecture, rows: int, tokens: int) -> int:
    """Most that a layer holds without gradient, in its MLP: gate, up, their product; the embeddings, the layer's input,
    the residual, the MLP's input; the rotary table."""
    held = 3 * arch.intermediate + 4 * arch.hidden + 2 * arch.head_dim
    return rows * tokens * held * arch.width + rows * tokens**2


def saved_bytes(arch: Architecture, rows: int, tokens: int, scored: int, masked: bool = False) -> int:
    """What a pass over [N, S] with gradient keeps until its backward pass; `scored` positions go into a head."""
    b, wide, hidden = arch.width, max(arch.width, 4), arch.hidden
    head = scored * hidden * b
    if not arch.layers_have_gradient:
        return head
    here = rows * tokens
    final = here * (hidden * (wide + b * arch.norms_trained) + 4) + head
    rotary = 2 * tokens * arch.head_dim * b
    if arch.checkpointing:
        return arch.layers * here * hidden * b + masked * rows * tokens**2 + rotary + final
    return arch.layers * layer_bytes(arch, rows, tokens, masked) + rotary + final


def layer_work_bytes(arch: Architecture, rows: int, tokens: int, masked: bool = False) -> int:
    """One layer's backward pass: its activations computed again if checkpointing, and gradients of D and F width."""
    if not arch.layers_have_gradient:
        return forward_bytes(arch, rows, tokens)
    again = layer_bytes(arch, rows, tokens, masked) if arch.checkpointing else 0
    return again + rows * tokens * (arch.hidden + arch.intermediate) * arch.width


def scored_tokens(work: Workload, lengths: Lengths) -> tuple[int, int]:
    """Columns of the pass over a plan (0 without CoT) and over an image, a row: the last token is never fed."""
    text = lengths.prompt + lengths.plan - 1 if work.cot else 0
    return text, lengths.image_context + work.image_tokens - 1


def text_bytes(arch: Architecture, work: Workload, lengths: Lengths) -> int:
    """Activations that scoring a micro-batch's plans keeps."""
    tokens, _ = scored_tokens(work, lengths)
    if not tokens:
        return 0
    return saved_bytes(arch, work.micro_rows, tokens, _positions(work, lengths)[0])


def image_bytes(arch: Architecture, work: Workload, lengths: Lengths) -> int:
    """Activations that scoring a micro-batch's images keeps; guided scores double the rows."""
    _, tokens = scored_tokens(work, lengths)
    rows = work.micro_rows * work.score_factor
    heads = 3 if work.guided_scores else 1  # both hidden states of a position, and the two side by side
    return saved_bytes(arch, rows, tokens, heads * _positions(work, lengths)[1], masked=not work.exact)


def logit_bytes(arch: Architecture, work: Workload, lengths: Lengths, backward: bool) -> tuple[int, int]:
    """A chunk's logits at their peak, of the text head (0 without CoT) and of the image head, in one direction."""
    text, image = _positions(work, lengths)
    text_rows, image_rows = even_rows(text, work.chunk_size), min(image, work.chunk_size)
    return (
        _head_bytes(arch, arch.text_matmul, arch.vocab * text_rows, text, backward, linear=True) if work.cot else 0,
        _head_bytes(
            arch, arch.image_matmul, arch.codes * work.score_factor * image_rows, image, backward, linear=False
        ),
    )


def _head_bytes(arch: Architecture, head: Matmul, logits: int, positions: int, backward: bool, linear: bool) -> int:
    """Of `logits` values in a chunk. A frozen head has its gradient taken while scoring; a trained linear one keeps one
    chunk until its backward pass, where the gradient of its weights is too."""
    b = arch.dtype.itemsize
    if not backward:
        gradient = b if not head.trained and arch.layers_have_gradient else 0
        return (4 * SOFTMAX_COPIES + b + gradient) * logits
    if not head.trained:
        return 0
    if linear:
        again = 4 * SOFTMAX_COPIES * logits if logits < positions * arch.vocab else 0
        return again + head.trained * b
    return 4 * CHECKPOINT_COPIES * logits + 2 * head.trained * b


def chunk_bytes(arch: Architecture, positions: int, chunk_size: int, vocabulary: int) -> int:
    """Logits of a chunk and their log-probabilities in float32, without gradient."""
    return even_rows(positions, chunk_size) * vocabulary * (arch.dtype.itemsize + 4 * SOFTMAX_COPIES)


def text_positions(work: Workload, lengths: Lengths) -> int:
    """Counted positions of a micro-batch's plans."""
    return _positions(work, lengths)[0]


def kept_logits(arch: Architecture, work: Workload, lengths: Lengths) -> int:
    """A chunk of the trained text head's logits, that waits for the backward pass."""
    text, _ = _positions(work, lengths)
    rows = even_rows(text, work.chunk_size) if text and arch.text_matmul.trained else 0
    return rows * arch.vocab * arch.dtype.itemsize


def _positions(work: Workload, lengths: Lengths) -> tuple[int, int]:
    """Counted positions of a micro-batch, of plans and of images."""
    return (round(work.micro_rows * lengths.plan_mean) if work.cot else 0), work.micro_rows * work.image_tokens


def draw_bytes(rows: int, guided: bool, vocabulary: int) -> int:
    """Logits of one position of all rows, while a token is drawn; guidance has two kinds and mixes them."""
    return rows * vocabulary * (DRAW_BYTES + 4 * (3 if guided else 1))
