"""The five modules of a Janus model that sampling and scoring touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn


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
    text_embeddings: nn.Module | None = None  # in place of the language model's own

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
        """The modules by name, without `text_embeddings`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "text_embeddings"}

    def embed_text(self, ids: Tensor) -> Tensor:
        """[N, L] text ids -> [N, L, D]."""
        own = self.text_embeddings
        return (self.language_model.get_input_embeddings() if own is None else own)(ids)

    def embed_image(self, codes: Tensor) -> Tensor:
        """[N, T] image codes -> [N, T, D]."""
        return self.generation_aligner(self.generation_embeddings(codes))

    def hidden(self, embeds: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Final hidden states [N, L, D] of embeddings [N, L, D]; mask [N, L], False = padding; positions [N, L].

        Without a mask all is real, or padding stands on the right; without positions they are 0, 1, 2, ...
        """
        out = self.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state
