"""Feeding the language model one token at a time, its keys and values in buffers made once.

`CachedDecoder` reads as much of its buffers as is filled. `StaticDecoder` keeps every tensor in one place and of one
size, as a captured step needs; what is not filled yet is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from egrpo.policy.backbone import Backbone
from egrpo.policy.fused import layer_weights


class Decoder(Protocol):
    """What the drawing loops need."""

    hidden: Tensor  # [R, D], of the last token fed

    def step(self, embeds: Tensor) -> None:
        """Feeds one embedding a row, [R, D]."""
        ...


class BufferedLayer(DynamicLayer):
    """One layer's keys and values in a buffer made once; its parent copies all of them at every token."""

    keys: Any  # [R, heads, length, D], views of the buffers once those are made
    values: Any

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes rows, with repeats, into a new buffer."""
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


class Prefill:
    """Runs prompts, equal ones once: the samples of a group share theirs, and unconditional rows differ in length only.

    Args:
        backbone: The modules.
        ids: [R, L] text ids, real token last.
        mask: [R, L] bool, False = padding.
        positions: [R, L].
        capacity: Columns of the buffers.
    """

    def __init__(self, backbone: Backbone, ids: Tensor, mask: Tensor, positions: Tensor, capacity: int) -> None:
        length = ids.shape[1]
        rows, back = torch.unique(torch.cat([ids, mask.long()], dim=1), dim=0, return_inverse=True)
        ids, mask = rows[:, :length], rows[:, length:].bool()
        one_of = torch.empty(len(rows), dtype=torch.long, device=back.device)
        one_of[back] = torch.arange(len(back), device=back.device)
        layers = backbone.language_model.config.num_hidden_layers
        self.layers: list[Any] = [BufferedLayer(capacity) for _ in range(layers)]
        self.cache = Cache(layers=self.layers)
        out = backbone.language_model(
            inputs_embeds=backbone.embed_text(ids),
            attention_mask=mask,
            position_ids=positions[one_of],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.back = back  # [R], which of the distinct prompts a row has
        self.hidden = out.last_hidden_state[:, -1][back]  # [R, D]


class CachedDecoder:
    """Runs prompts once, then one token at a time with a key/value cache.

    Args:
        backbone, ids, mask, positions: As of `Prefill`.
        max_steps: Most tokens that will be fed afterwards.
    """

    hidden: Tensor  # [R, D], of the last token fed

    def __init__(self, backbone: Backbone, ids: Tensor, mask: Tensor, positions: Tensor, max_steps: int) -> None:
        self._language_model = backbone.language_model
        self._length = ids.shape[1]
        self._mask = torch.cat([mask, mask.new_ones(mask.shape[0], max_steps)], dim=1)
        self._next_position = positions[:, -1:] + 1
        prefill = Prefill(backbone, ids, mask, positions, self._mask.shape[1])
        self._cache = prefill.cache
        self._cache.batch_select_indices(prefill.back)
        self.hidden = prefill.hidden

    def step(self, embeds: Tensor) -> None:
        """Feeds one embedding a row, [R, D]."""
        self._length += 1
        out = self._language_model(
            inputs_embeds=embeds[:, None],
            attention_mask=self._mask[:, None, None, : self._length],
            position_ids=self._next_position,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.hidden = out.last_hidden_state[:, -1]
        self._next_position = self._next_position + 1

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, [r] indices, alone."""
        self._mask, self._next_position, self.hidden = (x[rows] for x in (self._mask, self._next_position, self.hidden))
        self._cache.batch_select_indices(rows)


class StaticLayer(DynamicLayer):
    """One layer's keys and values [R, heads, capacity, D], written at a column that a tensor names."""

    keys: Any
    values: Any

    def __init__(self, decoder: StaticDecoder) -> None:
        super().__init__()
        self._decoder = decoder

    def load(self, other: BufferedLayer, rows: Tensor) -> None:
        """Takes rows of another layer's keys and values as first columns."""
        length = other.keys.shape[2]
        if self.keys is None:
            shape = (len(rows), other.keys.shape[1], self._decoder.capacity, other.keys.shape[3])
            # Zeros: a NaN would spread even from a masked column.
            self.keys, self.values = other.keys.new_zeros(shape), other.values.new_zeros(shape)
        self.keys[:, :, :length], self.values[:, :, :length] = other.keys[rows], other.values[rows]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes [R, heads, 1, D] in place; returns the columns that are looked at."""
        self.keys.index_copy_(2, self._decoder.column, key_states)
        self.values.index_copy_(2, self._decoder.column, value_states)
        return self.keys[:, :, : self._decoder.width], self.values[:, :, : self._decoder.width]


class StaticDecoder:
    """As `CachedDecoder`, with tensors of one size in one place, used again for one rollout after another.

    Args:
        backbone: The modules.
        rows: R.
        capacity: Columns of prompt and tokens together, at most.
        layer_step: Runs a layer in place of the model's own, see `egrpo.policy.fused.layer_step`.
    """

    hidden: Tensor

    def __init__(
        self, backbone: Backbone, rows: int, capacity: int, layer_step: Callable[..., Tensor] | None = None
    ) -> None:
        self._backbone = backbone
        self.layer_step = layer_step
        self.capacity = capacity
        self.length = 0  # columns of the prompts
        self.width = capacity  # columns that are looked at, at least those in use
        device = next(backbone.language_model.parameters()).device
        self.column = torch.zeros(1, dtype=torch.long, device=device)  # where the next token goes
        # One column more than is ever looked at: a whole and a part would be compiled apart.
        self._mask = torch.zeros(rows, 1, 1, capacity + 1, dtype=torch.bool, device=device)
        self._next_position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._layers: list[Any] = [StaticLayer(self) for _ in range(backbone.language_model.config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)

    def load(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        """Runs new prompts, arguments as of `CachedDecoder`, into the tensors."""
        prefill = Prefill(self._backbone, ids, mask, positions, ids.shape[1])
        for layer, other in zip(self._layers, prefill.layers, strict=True):
            layer.load(other, prefill.back)
        self.length = ids.shape[1]
        self.column.fill_(self.length)
        self._mask.zero_()
        self._mask[:, 0, 0, : ids.shape[1]] = mask
        self._next_position.copy_(positions[:, -1:] + 1)
        if not hasattr(self, "hidden"):
            self.hidden = torch.empty_like(prefill.hidden)
        self.hidden.copy_(prefill.hidden)

    def step(self, embeds: Tensor) -> None:
        """Feeds one embedding a row, [R, D]."""
        self._mask.index_fill_(3, self.column, True)
        mask = self._mask[..., : self.width]
        if self.layer_step is None:
            out = self._backbone.language_model(
                inputs_embeds=embeds[:, None],
                attention_mask=mask,
                position_ids=self._next_position,
                past_key_values=self._cache,
                use_cache=True,
            )
            self.hidden.copy_(out.last_hidden_state[:, -1])
        else:
            self.hidden.copy_(self._by_layers(self.layer_step, embeds, mask))
        self._next_position += 1
        self.column += 1

    def _by_layers(self, layer_step: Callable[..., Tensor], x: Tensor, mask: Tensor) -> Tensor:
        model = self._backbone.language_model
        rotation = model.rotary_emb(x[:, None], position_ids=self._next_position)
        torch._dynamo.maybe_mark_dynamic(mask, 3)
        for layer, kept in zip(model.layers, self._layers, strict=True):
            looked_at = [values[:, :, : self.width] for values in (kept.keys, kept.values)]
            for values in looked_at:
                torch._dynamo.maybe_mark_dynamic(values, 2)
            eps = layer.input_layernorm.variance_epsilon
            x = layer_step(x, layer_weights(layer), rotation, mask, *looked_at, self.column, eps)
        return model.norm(x)
