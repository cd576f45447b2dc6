"""A call in a thread of its own, and on a GPU in a stream of its own, while the caller does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

from egrpo.rewards.placement import Placement

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def beside(enabled: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Iterator[Callable[[], T]]:
    """Starts `function` at once in a thread, and gives what waits for its result or raises its error.

    The thread has the caller's number of torch threads and current accelerator, and no gradients. On a GPU its kernels
    run in a stream of their own, which starts behind what the caller's stream has been given so far; what the caller
    starts after it has the result (or its error) comes behind the call's kernels. Where `enabled` is False nothing is
    started: the function runs when its result is asked for. On leaving, the thread has ended.
    """
    if not enabled:
        yield lambda: function(*args, **kwargs)
        return
    threads = torch.get_num_threads()
    own = _stream_behind_the_callers() if torch.cuda.is_available() else None

    def task() -> T:
        torch.set_num_threads(threads)  # set by thread
        with torch.no_grad(), nullcontext() if own is None else torch.cuda.stream(own):
            return function(*args, **kwargs)

    with ThreadPoolExecutor(1, thread_name_prefix="egrpo") as pool:
        future = pool.submit(task)
        try:
            yield future.result
        finally:
            wait([future])
            if own is not None:
                torch.cuda.current_stream(own.device).wait_stream(own)


def _stream_behind_the_callers() -> torch.cuda.Stream:
    """On the current device; entering it sets that device too."""
    own = torch.cuda.Stream()
    own.wait_stream(torch.cuda.current_stream())
    return own


def can_overlap(rewards: Iterable[Any]) -> bool:
    """False where one of the rewards changes, while it is used, how the whole process multiplies (TF32): what runs at
    the same time would be computed less exactly than it was asked for, and not the same from run to run."""
    placements = (getattr(reward, "placement", None) for reward in rewards)
    return not any(placement.process_wide for placement in placements if isinstance(placement, Placement))
