"""egrpo: the experiment platform for entropy-guided RL of autoregressive image generators."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egrpo.generation import Generator as Generator

__version__ = "0.1.0"

if "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][0].startswith("egrpo."):
    from egrpo.base.stopping import end_early

    end_early()  # `python -m egrpo.COMMAND` imports for seconds before the command itself can take signals


def __getattr__(name: str) -> Any:
    if name != "Generator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from egrpo.generation import Generator  # here, for it loads torch: `import egrpo` alone is quick

    return Generator
