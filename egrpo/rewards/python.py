"""A reward that is one plain function, named by where it lies."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from egrpo.base.errors import UserError
from egrpo.base.limits import OverdueError, within
from egrpo.types import PromptRecord

SETTING = "reward.python.reward.function"


class PythonReward:
    """Calls `function(images, records)`, which returns N numbers, higher is better.

    Where the function has an attribute `applies` or `check`, so has the reward; see `egrpo.rewards.base.Reward`.

    Args:
        function: `my_lab.brightness.score`, or `path/to/file.py:score`. Resolved here, so that a wrong name ends a run
            before it starts.
        timeout: Seconds for one call, after which it counts as failed: it runs in a thread of its own, which has the
            caller's settings of torch. None = no limit, in the caller's thread.

    Raises:
        UserError: the module or the name is missing, importing it fails (its error is the cause), or what is there is
            no function of images and records.
    """

    def __init__(self, function: str, timeout: float | None = 3600.0):
        if not function:
            raise UserError(f"the python reward has no function: set {SETTING}=my_lab.brightness.score")
        self.name = str(function)
        if timeout is not None and not 0 < timeout < threading.TIMEOUT_MAX:
            raise UserError(f"reward.python.reward.timeout={timeout}: give seconds above 0, or null for no limit")
        self.timeout = timeout
        self.function = _resolve(self.name)
        if hasattr(self.function, "applies"):  # else absent, which says that no prompt gets a constant
            self.applies = self.function.applies
        if hasattr(self.function, "check"):
            self.check = self.function.check

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records -> whatever the function gives, as float32.

        Raises:
            TypeError: the function returned something that is no list of numbers.
            OverdueError: it did not return in time.
        """
        try:
            values = within(self.timeout, self.function, images, records)
        except OverdueError as error:
            raise OverdueError(
                f"{self.name}: {error}; mend the function, or allow it more with reward.python.reward.timeout=SECONDS"
            ) from None
        try:
            return torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{self.name} returned a {type(values).__name__} that is no list of numbers: {error}"
            ) from error


def _resolve(name: str) -> Callable[..., Any]:
    path, is_file, attribute = name.rpartition(".py:")
    if is_file:
        module = _load_file(Path(path + ".py").expanduser(), name)
        found = _descend(module, attribute.split("."), name)
    else:
        module, rest = _import_prefix(name)
        found = _descend(module, rest, name)
    if inspect.isclass(found):
        raise UserError(
            f"{SETTING}={name} is a class: name a plain function, or give the class as _target_ in a yaml of its own"
        )
    if not callable(found):
        raise UserError(f"{SETTING}={name} is a {type(found).__name__}, not a function of (images, records)")
    _check_signature(found, name)
    return found


def _import_prefix(name: str) -> tuple[ModuleType, list[str]]:
    """The longest importable module of a dotted path, and the names left over (one, or a class's method)."""
    parts = name.split(".")
    if len(parts) < 2 or not all(parts):
        raise UserError(
            f"{SETTING}={name} names no function: give package.module.function, or path/to/file.py:function"
        )
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        try:
            return importlib.import_module(module_name), parts[end:]
        except ModuleNotFoundError as error:
            # The module itself is missing, rather than something that it imports.
            if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise _import_failed(name, module_name, error) from error
        except Exception as error:
            raise _import_failed(name, module_name, error) from error
    raise UserError(
        f"{SETTING}={name}: there is no module {'.'.join(parts[:-1])}; run from the folder that holds it, put that "
        "folder on PYTHONPATH, or name the file: path/to/file.py:function"
    )


def _load_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{SETTING}={name}: there is no file {path}")
    # One name for each file: two files called score.py are two modules.
    module_name = f"egrpo_reward_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise _import_failed(name, str(path), error) from error
    return module


def _import_failed(name: str, module: str, error: Exception) -> UserError:
    return UserError(f"{SETTING}={name}: importing {module} raised {type(error).__name__}: {error}")


def _descend(module: ModuleType, names: list[str], name: str) -> Any:
    found: Any = module
    for attribute in names:
        if not hasattr(found, attribute):
            where = getattr(found, "__file__", None) or getattr(found, "__name__", found)
            raise UserError(f"{SETTING}={name}: {where} has no {attribute!r}")
        found = getattr(found, attribute)
    return found


def _check_signature(function: Callable[..., Any], name: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some C functions tell none
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        raise UserError(f"{SETTING}={name}{signature} cannot be called with (images, records): {error}") from error
