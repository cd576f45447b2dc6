"""`python -m egrpo.torchrun ...` is torchrun, but a failing run ends in one sentence: its own, or what killed it."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

GO_ON = "go on from the last checkpoint with ckpt_path=..."
TOGETHER = 10  # seconds; torchrun itself kills what does not end within 30


def main() -> None:
    """Runs torchrun; exits as the run does, without torchrun's table of exit codes.

    Ranks tell their own errors (`egrpo.entry`); a rank that a signal has killed cannot.
    """
    logging.disable(logging.ERROR)  # what torchrun logs of a failure says no more
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        if sentence := killed(error.failures):
            print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1) from None
    except SignalException as stop:
        if stop.sigval != signal.SIGINT:  # of which the ranks tell
            print(f"error: the run was ended by {stop.sigval.name}; {GO_ON}", file=sys.stderr)
        raise SystemExit(128 + stop.sigval) from None


def killed(failures: Mapping[int, ProcessFailure]) -> str | None:
    """A sentence about the ranks that signals have ended; None where the first to fail told its own reason."""
    first = min(failure.timestamp for failure in failures.values())
    signals: dict[int, signal.Signals] = {
        rank: signal.Signals(-failure.exitcode)
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.timestamp <= first + TOGETHER
    }
    # SIGTERM is what torchrun ends the others with; it is the reason only where there is no other.
    found: dict[int, signal.Signals] = {rank: name for rank, name in signals.items() if name != signal.SIGTERM}
    if not found and len(signals) == len(failures):
        found = signals
    if not found:
        return None
    ranks = ", ".join(f"rank {rank} was ended by {name.name}" for rank, name in sorted(found.items()))
    memory = ", often the system's answer where memory runs out" if signal.SIGKILL in found.values() else ""
    return f"{ranks}{memory}; {GO_ON}"


if __name__ == "__main__":
    main()
