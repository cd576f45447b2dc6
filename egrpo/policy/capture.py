"""How the turns of a drawing loop are run: eagerly, or captured once as a CUDA graph and replayed.

A captured turn costs the device's time alone: launching some thousand small kernels from Python costs ten times that.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from egrpo.base.errors import UserError
from egrpo.policy import fused
from egrpo.policy.backbone import Backbone
from egrpo.policy.decoding import CachedDecoder, StaticDecoder
from egrpo.policy.drawing import Drawing
from egrpo.policy.fused import can_fuse
from egrpo.policy.loop import Loop

log = logging.getLogger(__name__)

DECODING = ("auto", "eager", "static", "captured", "compiled")
WIDTH = 128  # a graph serves this many columns: fewer read less of the cache, more need fewer graphs
# Measured by `python -m experiments.speed.decoding` with 8 images at 7B and 1B.
EAGER_COST = "4 to 12 times as long a token on a GPU"
UNOBSERVED = 16  # turns on a device between two looks at whether all rows have ended


class Steps:
    """Makes loops and runs their turns; keeps what was captured from one rollout to the next.

    Args:
        decoding: "eager": buffers that are read as far as they are filled. "static": tensors of fixed size. "captured":
            those, and turns replayed as CUDA graphs (on CUDA). "compiled": those, and the operations of a layer fused
            by torch.compile, where layers are plain. "auto": compiled on CUDA, eager elsewhere.

    Raises:
        UserError: there is no such way.
    """

    def __init__(self, decoding: str = "auto") -> None:
        if decoding not in DECODING:
            raise UserError(f"rollout.decoding={decoding}: choose {', '.join(DECODING)}")
        self.decoding = decoding
        self._kept: dict[str, tuple[tuple[Any, ...], StaticLoop]] = {}  # kind -> what it was made for, and the loop
        self._compiles = self._captures = True  # until it fails

    def loop(
        self,
        kind: str,
        backbone: Backbone,
        context: tuple[Tensor, Tensor, Tensor],
        uniforms: Tensor | None,
        length: int,
        how: Drawing,
        eos: int | None = None,
    ) -> Loop:
        """A loop that has read its context (ids, mask, positions, [R, L] each) and can draw.

        Args:
            kind: "text" or "image".
            backbone: The modules.
            context: Under guidance the unconditional rows last.
            uniforms: [N, length]; None where `how.greedy`.
            length: Most tokens of a row.
            how: Temperature, guidance, cuts.
            eos: End-of-sequence token id; None = rows never end.
        """
        ids = context[0]
        rows = len(ids) // 2 if how.guided else len(ids)
        embed = backbone.embed_text if kind == "text" else backbone.embed_image
        head = backbone.lm_head if kind == "text" else backbone.generation_head
        settings: tuple[Any, ...] = (embed, head, how, rows, length, eos, ids.device)
        way = self._way(ids.device)
        if way == "eager":
            loop = Loop(CachedDecoder(backbone, *context, length), *settings)
            loop.start(uniforms)
            return loop
        made_for = (rows, how, length, eos, ids.device, addresses(backbone))
        needed = ids.shape[1] + length
        before, static = self._kept.get(kind, (None, None))
        if static is None or before != made_for or static.decoder.capacity < needed:
            self._kept.pop(kind, None)  # its memory first
            del static
            capacity = -(-needed // WIDTH) * WIDTH
            decoder = StaticDecoder(backbone, len(ids), capacity, self._layer_step(backbone, way))
            static = StaticLoop(decoder, *settings)
            self._kept[kind] = (made_for, static)
        static.decoder.load(*context)
        static.start(uniforms)
        return static

    def run(self, loop: Loop, turns: int) -> None:
        """Draws `turns` tokens more a row."""
        for _ in range(turns):
            if not isinstance(loop, StaticLoop):
                loop.turn()
            else:
                self._static_turn(loop)

    @property
    def fell_back(self) -> bool:
        """Whether compiling or capturing failed, so that tokens are drawn in a slower way than was asked for."""
        return not (self._compiles and self._captures)

    def unobserved(self, loop: Loop) -> int:
        """Turns that may be run before the host looks whether all rows have ended."""
        return 1 if loop.tokens.device.type == "cpu" else UNOBSERVED

    def _way(self, device: torch.device) -> str:
        if self.decoding != "auto":
            return self.decoding
        return "compiled" if device.type == "cuda" else "eager"

    def _layer_step(self, backbone: Backbone, way: str) -> Any:
        fuse = way == "compiled" and self._compiles and can_fuse(backbone.language_model)
        return fused.compiled() if fuse else None

    def _static_turn(self, loop: StaticLoop) -> None:
        way = self._way(loop.tokens.device)
        capture = way != "static" and self._captures and loop.can_capture
        try:
            return loop.captured_turn() if capture else loop.static_turn()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if loop.decoder.layer_step is not None:
                self._compiles, loop.decoder.layer_step = False, None
                log.warning("layers are not fused while sampling (perf/decoding=0): compiling them failed: %s", error)
            elif capture:
                self._captures = False
                log.warning(
                    "sampling runs eagerly (perf/decoding=0), which takes %s: capturing a CUDA graph failed: %s",
                    EAGER_COST,
                    error,
                )
            else:
                raise
        self._static_turn(loop)


class StaticLoop(Loop):
    """A loop on a `StaticDecoder`, with its graphs."""

    decoder: StaticDecoder

    def __init__(self, decoder: StaticDecoder, *settings: Any) -> None:
        super().__init__(decoder, *settings)
        self._columns = 0  # in use, on the host
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._seen: set[int] = set()
        self._pool: Any = None

    @property
    def can_capture(self) -> bool:
        return self.tokens.device.type == "cuda"

    def start(self, uniforms: Tensor | None) -> None:
        super().start(uniforms)
        self._columns = self.decoder.length

    def static_turn(self) -> None:
        """A turn at once; looks at no more columns than are in use, rounded up."""
        self.decoder.width = self._width()
        self.turn()
        self._columns += 1

    def captured_turn(self) -> None:
        """A turn by its graph. A width's first runs eagerly (libraries set themselves up), its second is captured."""
        width = self._width()
        if width not in self._seen:
            self.static_turn()
            self._seen.add(width)
            return
        if width not in self._graphs:
            self.decoder.width = width
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self.turn()
            self._pool = self._pool or graph.pool()
            self._graphs[width] = graph
        self._graphs[width].replay()
        self._columns += 1

    def _width(self) -> int:
        return min(-(-(self._columns + 1) // WIDTH) * WIDTH, self.decoder.capacity)


def addresses(backbone: Backbone) -> tuple[int, ...]:
    """Where the weights are: a graph reads them there."""
    return tuple(p.data_ptr() for part in backbone.modules().values() for p in part.parameters())
