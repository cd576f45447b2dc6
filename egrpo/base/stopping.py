"""Ctrl-C and SIGTERM: at any moment they unwind the program, which ends with status 128 + signal and a sentence."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED = 2.0  # seconds; a launcher passes on a signal that the terminal has sent to all processes already
GRACE = 15.0  # seconds from the end of a parent until its child is killed
PARENT = "EGRPO_PARENT"  # environment variable: process without which this one has no purpose
WATCH = "egrpo parent"

_received: tuple[int, float] | None = None  # the signal that came first, and when


class Stopped(SystemExit):
    """A signal asked this process to end. No `except Exception` swallows it; alone it exits with 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __reduce__(self) -> Any:
        return type(self), (self.number,)

    def __str__(self) -> str:
        return f"stopped by {name_of(self.number)}"


def name_of(number: int) -> str:
    """How users know a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def heeded() -> Iterator[None]:
    """Within, a signal that would end the process raises `Stopped` in the main thread; one that others handle, or that
    is ignored (nohup), stays as it is. In other threads nothing changes."""
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = (signal.SIG_DFL, signal.default_int_handler, _end_at_once)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    own = {number: handler for number, handler in before.items() if handler in free}
    for number in own:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        if own:
            _received = None


def take_back() -> None:
    """Replaces handlers that a library put around ours. Lightning's waits for the end of a batch, loses a signal that
    comes in the last batch of a validation, and broadcasts over the ranks from within the handler."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if _stop in getattr(signal.getsignal(number), "signal_handlers", ()):
            signal.signal(number, _stop)


def check() -> None:
    """Raises `Stopped` where a signal came whose exception was lost, as in a destructor, or went to another thread."""
    if _received is not None:
        raise Stopped(_received[0])


def end_early() -> None:
    """While a command's modules are imported, which takes seconds: a signal ends the process in a sentence."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end_at_once)


def end_with_parent() -> None:
    """Ends this process soon after the one that the environment variable EGRPO_PARENT names, if it does."""
    if parent := os.environ.pop(PARENT, ""):
        end_with(int(parent))


def end_with(parent: int) -> None:
    """Ends this process soon after its parent has ended, as by SIGTERM; kills it where that takes too long."""
    if any(thread.name == WATCH for thread in threading.enumerate()):
        return  # a worker of a sweep runs a job after another

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name=WATCH).start()


def _stop(number: int, frame: Any) -> None:
    global _received
    now = time.monotonic()
    if _received is not None and now - _received[1] < REPEATED:
        return
    _received = _received or (number, now)
    raise Stopped(number)


def _end_at_once(number: int, frame: Any) -> NoReturn:
    sys.stderr.write(f"stopped by {name_of(number)} before anything was computed\n")
    sys.stderr.flush()
    os._exit(128 + number)
