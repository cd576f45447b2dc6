"""One turn of drawing: feed the last token, draw the next, record it. All on tensors that stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from egrpo.policy.decoding import CachedDecoder, Decoder
from egrpo.policy.drawing import Drawing, draw


class Loop:
    """Draws a token a row and turn. A turn needs nothing from the host, so that it can be captured.

    Args:
        decoder: Holds the last hidden states; under guidance of 2 N rows, the unconditional ones last.
        embed: Tokens [N, 1] -> [N, 1, D].
        head: [R, D] -> [R, V].
        how: Temperature, guidance, cuts.
        rows: N.
        length: Most tokens of a row, T.
        eos: End-of-sequence token id; None = rows never end.
    """

    def __init__(
        self,
        decoder: Decoder,
        embed: Callable[[Tensor], Tensor],
        head: nn.Module,
        how: Drawing,
        rows: int,
        length: int,
        eos: int | None,
        device: torch.device,
    ) -> None:
        self.decoder, self.embed, self.head, self.how, self.eos = decoder, embed, head, how, eos
        self.tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.logps = torch.zeros(rows, length, dtype=torch.float32, device=device)
        self.entropy = torch.zeros(rows, length, dtype=torch.float32, device=device)
        self.uniforms = torch.zeros(rows, length, dtype=torch.float64, device=device)
        self.last = torch.zeros(rows, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.turn_index = torch.zeros(1, dtype=torch.long, device=device)  # of the token to be drawn
        self.rows: Tensor | None = None  # [r] rows that are still drawn; None = all

    def start(self, uniforms: Tensor | None) -> None:
        """Begins anew with other random numbers [N, T]."""
        if uniforms is not None:
            self.uniforms.copy_(uniforms)
        if self.eos is not None:
            self.tokens.fill_(self.eos)
        for recorded in (self.logps, self.entropy, self.ended, self.turn_index):
            recorded.zero_()

    def turn(self) -> None:
        """Feeds the tokens drawn last and draws the next."""
        embeds = self.embed(self.last[:, None])[:, 0]
        self.decoder.step(embeds.repeat(2, 1) if self.how.guided else embeds)
        self.draw()

    def draw(self) -> None:
        """Draws a token from the decoder's hidden states."""
        numbers = None if self.how.greedy else self._column(self.uniforms)
        token, logp, entropy = draw(self.head(self.decoder.hidden), numbers, self.how)
        if self.eos is not None:
            token = token.masked_fill(self.ended, self.eos)
            self.ended |= token == self.eos
        self.last.copy_(token)
        for record, value in ((self.tokens, token), (self.logps, logp), (self.entropy, entropy)):
            self._write(record, value)
        self.turn_index += 1

    def all_ended(self) -> bool:
        """Whether every row has met end-of-sequence; waits for the device."""
        return self.eos is not None and bool(self.ended.all())

    def compact(self) -> None:
        """Leaves out rows that have ended, once they are half of all; where the decoder cannot, nothing."""
        if not isinstance(self.decoder, CachedDecoder) or self.how.guided:
            return
        alive = (~self.ended).nonzero()[:, 0]
        if not 0 < len(alive) <= len(self.ended) // 2:
            return
        self.rows = alive if self.rows is None else self.rows[alive]
        self.decoder.keep(alive)
        self.last, self.ended = self.last[alive], self.ended[alive]

    def _column(self, values: Tensor) -> Tensor:
        column = values.index_select(1, self.turn_index)[:, 0]
        return column if self.rows is None else column[self.rows]

    def _write(self, record: Tensor, value: Tensor) -> None:
        if self.rows is None:
            record.index_copy_(1, self.turn_index, value[:, None])
        else:
            record[self.rows, self.turn_index] = value
