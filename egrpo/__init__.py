"""egrpo: the experiment platform for entropy-guided RL of autoregressive image generators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egrpo.generation import Generator as Generator

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "Generator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from egrpo.generation import Generator  # here, for it loads torch: `import egrpo` alone is quick

    return Generator
