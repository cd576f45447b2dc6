"""Calls that must end in time."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class OverdueError(TimeoutError):
    """A call did not return in time; the message says what it was doing."""


POLL = 0.2  # seconds between looks at whether a call is given up


def within(seconds: float | None, function: Callable[..., T], *args: Any, given_up: threading.Event | None = None) -> T:
    """What `function` returns or raises, called in a thread of its own that is left behind where it takes too long.

    The thread has the caller's number of torch threads, current accelerator and gradient mode.

    Args:
        seconds: Most that is waited for; None = no limit, and the call is made in the present thread.
        function: Called with `args`.
        given_up: Ends the waiting early.

    Raises:
        OverdueError: it did not return in time.
    """
    if seconds is None:
        return function(*args)
    found: dict[str, Any] = {}
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def call() -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
        if device is not None:
            torch.cuda.set_device(device)
        try:
            found["value"] = function(*args)
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=call, daemon=True, name="egrpo call")  # no daemon would keep the process alive
    thread.start()
    end = time.monotonic() + seconds
    while thread.is_alive() and (left := end - time.monotonic()) > 0 and not (given_up and given_up.is_set()):
        thread.join(min(left, POLL) if given_up else left)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        at = traceback.extract_stack(frame)[-1] if frame else None
        where = f" (it is in {at.name}, {at.filename} line {at.lineno})" if at else ""
        raise OverdueError(f"no answer within {seconds:g} s{where}")
    if "error" in found:
        raise found["error"]
    return found["value"]
