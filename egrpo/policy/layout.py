"""Where padding stands and which position a token has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from egrpo.base.errors import UserError

Padding = Literal["exact", "published"]
PADDINGS = ("exact", "published")


def check_padding(padding: str) -> None:
    """Raises UserError unless `padding` is a known mode."""
    if padding not in PADDINGS:
        raise UserError(f"padding must be one of {', '.join(PADDINGS)}, not {padding!r}")


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor.

    Returns:
        ids [N, L] int64 and mask [N, L] bool, False = padding.
    """
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = True
    return ids, mask


def image_context(
    rows: Sequence[Sequence[int]], pad: int, begin_of_image: int, padding: str, together: int | None = None
) -> tuple[Tensor, Tensor]:
    """Prompts of images, begin-of-image last in every row.

    exact pads on the left; published pads on the right before begin-of-image, as T2I-R1 and EG-GRPO do, to the longest
    of `together` consecutive rows (None = all; in the released code they are one prompt's group). Narrower rows begin
    with columns of padding, which `without_filler` takes off again.

    Returns:
        ids [N, L] int64 and mask [N, L] bool, False = padding.
    """
    size = together if together and padding == "published" else len(rows)
    parts = [pad_rows(rows[i : i + size], pad, left=padding == "exact") for i in range(0, len(rows), size)]
    longest = max(ids.shape[1] for ids, _ in parts)
    ids = torch.cat([nn.functional.pad(ids, (longest - ids.shape[1], 0), value=pad) for ids, _ in parts])
    mask = torch.cat([nn.functional.pad(mask, (longest - mask.shape[1], 0), value=False) for _, mask in parts])
    last = torch.full((len(rows), 1), begin_of_image, dtype=torch.long)
    return torch.cat([ids, last], dim=1), torch.cat([mask, torch.ones_like(last, dtype=torch.bool)], dim=1)


def without_filler(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both [N, L] without the leading columns in which no row has a real token."""
    first = int((~mask.any(dim=0)).long().cumprod(dim=0).sum())
    return ids[:, first:], mask[:, first:]


def left_pack(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Moves padding to the left wherever it stood and drops columns that only hold padding.

    Args:
        ids: [N, L].
        mask: [N, L] bool, False = padding.

    Returns:
        ids and mask, [N, longest row].
    """
    order = mask.long().argsort(dim=1, stable=True)
    longest = int(mask.sum(dim=1).max())
    order = order[:, mask.shape[1] - longest :]
    return ids.gather(1, order), mask.gather(1, order)


def right_padded(mask: Tensor) -> Tensor:
    """Columns [N, longest row] that put padding after a row's real tokens.

    In a causal model no real token sees it there, so attention needs no mask, and a token's column is its position.

    Args:
        mask: [N, L] bool, False = padding wherever it stands.
    """
    return (~mask).long().argsort(dim=1, stable=True)[:, : int(mask.sum(dim=1).max())]


def filler_of(mask: Tensor) -> Tensor:
    """Columns [N] before the first real token of each row: what `image_context` put before narrower rows."""
    return mask.long().argmax(dim=1)


def positions_of(mask: Tensor, padding: str = "exact", filler: Tensor | None = None) -> Tensor:
    """Position ids [N, L]: exact counts real tokens only; published counts holes too, from `filler` [N] on."""
    if padding == "published":
        columns = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        return columns if filler is None else (columns - filler[:, None]).clamp(min=0)
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def unconditional(
    ids: Tensor, mask: Tensor, pad: int, padding: str, filler: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The prompt without its content, for classifier-free guidance.

    exact: every token except a row's own first and last becomes the pad token, in the row's own positions.
    published: every column except the first and the last becomes the pad token, and all columns count; `filler` columns
    [N] before the first are no part of a row.

    Args:
        ids: [N, L], begin-of-image last; in exact mode packed to the left.
        mask: [N, L] bool, False = padding.
        pad: Pad token id.

    Returns:
        ids and mask, both [N, L].
    """
    keep = torch.zeros_like(mask)
    keep[:, -1] = True
    if padding == "published":
        first = torch.zeros(len(mask), dtype=torch.long, device=mask.device) if filler is None else filler
        keep.scatter_(1, first[:, None], True)
        return ids.where(keep, pad), torch.arange(mask.shape[1], device=mask.device) >= first[:, None]
    keep |= mask & (mask.cumsum(dim=1) == 1)
    return ids.where(keep, pad), mask
