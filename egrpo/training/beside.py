"""A call that goes on in a thread of its own while the caller does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def beside(enabled: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Iterator[Callable[[], T]]:
    """Starts `function` at once in a thread, and gives what waits for its result or raises its error.

    The thread has the caller's number of torch threads and current accelerator, and no gradients. Where `enabled` is
    False nothing is started: the function runs when its result is asked for. On leaving, the thread has ended.
    """
    if not enabled:
        yield lambda: function(*args, **kwargs)
        return
    threads = torch.get_num_threads()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def task() -> T:
        torch.set_num_threads(threads)  # both are set by thread
        if device is not None:
            torch.cuda.set_device(device)
        with torch.no_grad():
            return function(*args, **kwargs)

    with ThreadPoolExecutor(1, thread_name_prefix="egrpo") as pool:
        future = pool.submit(task)
        yield future.result
