"""The five modules of a Janus model that sampling and scoring touch, and the loop that feeds them token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no checkpointing), then every submodule back in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@dataclass(frozen=True)
class Backbone:
    """Language model, its text head, and the way in and out for image codes; no vision tower, no VQ model."""

    language_model: Any  # a PreTrainedModel; the others are plain modules
    lm_head: nn.Module
    generation_embeddings: nn.Module
    generation_aligner: nn.Module
    generation_head: nn.Module

    @classmethod
    def of(cls, model: Any) -> Backbone:
        """The modules of a native `JanusForConditionalGeneration`, by reference."""
        inner = model.model
        return cls(
            inner.language_model,
            model.lm_head,
            inner.generation_embeddings,
            inner.generation_aligner,
            inner.generation_head,
        )

    def modules(self) -> dict[str, nn.Module]:
        """The modules by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def embed_text(self, ids: Tensor) -> Tensor:
        """[N, L] text ids -> [N, L, D]."""
        return self.language_model.get_input_embeddings()(ids)

    def embed_image(self, codes: Tensor) -> Tensor:
        """[N, T] image codes -> [N, T, D]."""
        return self.generation_aligner(self.generation_embeddings(codes))

    def hidden(self, embeds: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Final hidden states [N, L, D] of embeddings [N, L, D]; mask [N, L], False = padding; positions [N, L].

        Without a mask all is real, or padding stands on the right; without positions they are 0, 1, 2, ...
        """
        out = self.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state


class BufferedLayer(DynamicLayer):
    """One layer's keys and values in a buffer made once; its parent copies all of them at every token."""

    keys: Any  # [R, heads, length, D], views of the buffers once those are made
    values: Any

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes rows, with repeats, into the buffer."""
        length = self.keys.shape[2]
        buffers = []
        for values in (self.keys, self.values):
            buffer = values.new_empty(len(indices), values.shape[1], self._capacity, values.shape[3])
            buffer[:, :, :length] = values[indices]
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [R, heads, n, D]; returns all keys and values so far."""
        if self._buffers is None:
            return super().update(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for buffer, values in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, start:end] = values
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


class CachedDecoder:
    """Runs prompts once, then one token at a time with a key/value cache.

    Rows with equal prompts are run once: the samples of a group share theirs, and unconditional rows differ in
    length only.

    Args:
        backbone: The modules.
        ids: [R, L] text ids, real token last.
        mask: [R, L] bool, False = padding.
        positions: [R, L].
        max_steps: Most tokens that will be fed afterwards.
    """

    hidden: Tensor  # [R, D], of the last token fed

    def __init__(self, backbone: Backbone, ids: Tensor, mask: Tensor, positions: Tensor, max_steps: int) -> None:
        self._language_model = backbone.language_model
        self._length = ids.shape[1]
        self._mask = torch.cat([mask, mask.new_ones(mask.shape[0], max_steps)], dim=1)
        self._next_position = positions[:, -1:] + 1
        layers = self._language_model.config.num_hidden_layers
        self._cache = Cache(layers=[BufferedLayer(self._mask.shape[1]) for _ in range(layers)])
        rows, back = torch.unique(torch.cat([ids, mask.long()], dim=1), dim=0, return_inverse=True)
        ids, mask = rows[:, : self._length], rows[:, self._length :].bool()
        one_of = torch.empty(len(rows), dtype=torch.long, device=back.device)
        one_of[back] = torch.arange(len(back), device=back.device)
        hidden = self._run(backbone.embed_text(ids), mask, positions[one_of])
        self._cache.batch_select_indices(back)
        self.hidden = hidden[back]

    def step(self, embeds: Tensor) -> Tensor:
        """Feeds one embedding a row, [R, D]; returns its final hidden state [R, D]."""
        self._length += 1
        self.hidden = self._run(embeds[:, None], self._mask[:, : self._length], self._next_position)
        self._next_position = self._next_position + 1
        return self.hidden

    def _run(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = self._language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]
