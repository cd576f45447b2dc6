"""The keyword arguments of a `_target_`, with their annotations."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.utils import get_object

# Where the `**kwargs` of other libraries' classes go.
FORWARDED = {
    "lightning.pytorch.strategies.DDPStrategy": "torch.nn.parallel.DistributedDataParallel",
    "lightning.pytorch.loggers.WandbLogger": "wandb.init",
    "lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}
KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Parameters:
    """What a target takes.

    Args:
        annotations: Keyword argument -> its annotation, `Any` where there is none.
        closed: There are no others; False where a `**kwargs` leads nowhere that is known.
    """

    annotations: dict[str, Any]
    closed: bool


@cache
def parameters_of(name: str) -> Parameters:
    """The keyword arguments of the object with this dotted name.

    `**kwargs` are followed: of a class to its bases, of a class method to its class, of some to `FORWARDED`.

    Raises:
        InstantiationException, ImportError: there is no such object.
    """
    return _parameters(get_object(name))


def _parameters(target: Callable[..., Any]) -> Parameters:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some C functions have none
        return Parameters({}, closed=False)
    hints = _hints(target)
    own = {p.name: _annotation(p, hints) for p in parameters if p.kind in KEYWORDS}
    if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
        return Parameters(own, closed=True)
    further = _forwarded(target)
    if further is None:
        return Parameters(own, closed=False)
    rest = _parameters(further)
    return Parameters({**rest.annotations, **own}, rest.closed)


def _forwarded(target: Callable[..., Any]) -> Callable[..., Any] | None:
    """What gets the `**kwargs` of a target."""
    name = f"{target.__module__}.{getattr(target, '__qualname__', '')}"
    for public, further in FORWARDED.items():
        if name == public or get_object(public) is target:
            return get_object(further)
    if inspect.ismethod(target) and inspect.isclass(target.__self__):
        return target.__self__
    bases = getattr(target, "__mro__", ())[1:-1]
    return next((base for base in bases if "__init__" in vars(base)), None)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function: Any = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees
        found = getattr(function, "__annotations__", {})
        return {name: hint for name, hint in found.items() if not isinstance(hint, str)}


def _annotation(parameter: inspect.Parameter, hints: dict[str, Any]) -> Any:
    found = hints.get(parameter.name, Any)
    return found | None if parameter.default is None and found is not Any else found
