"""`python -m egrpo.torchrun ...` is torchrun, but a failing run ends in one sentence: its own, or what killed it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from egrpo.base import stopping
from egrpo.launch import SILENT, resume_training

TOGETHER = 10  # seconds; torchrun itself kills what does not end within 30


def main() -> None:
    """Runs torchrun; exits as the run does, without torchrun's table of exit codes: 143 and 130 after a signal.

    Ranks tell their own errors (`egrpo.entry`); a rank that a signal has ended does not.
    """
    logging.disable(logging.ERROR)  # what torchrun logs of a failure says no more
    os.environ[SILENT] = "1"
    stopping.end_with_parent()
    with stopping.heeded():
        try:
            torchrun(sys.argv[1:])
        except ChildFailedError as error:
            if sentence := killed(error.failures, how_to_resume(sys.argv)):
                print(f"error: {sentence}", file=sys.stderr)
            raise SystemExit(status_of(error.failures)) from None
        except (SignalException, stopping.Stopped) as stop:
            number = stop.sigval if isinstance(stop, SignalException) else stop.number
            print(f"stopped by {stopping.name_of(number)}: {how_to_resume(sys.argv)}", file=sys.stderr)
            raise SystemExit(128 + number) from None


def how_to_resume(words: Sequence[str]) -> str:
    """Of a run with this command line."""
    folders = [word.partition("=")[2].strip("'") for word in words if word.startswith("hydra.run.dir=")]
    if folders:
        return resume_training(Path(folders[-1].replace("\\'", "'")))
    return "resume from the last checkpoint with ckpt_path=FOLDER/checkpoints/last.ckpt hydra.run.dir=FOLDER"


def status_of(failures: Mapping[int, ProcessFailure]) -> int:
    """Exit status of a run: that of a signal where all ranks that failed first were asked to end, else 1."""
    first = min(failure.timestamp for failure in failures.values())
    numbers = {signal_of(f.exitcode) for f in failures.values() if f.timestamp <= first + TOGETHER}
    number = numbers.pop() if len(numbers) == 1 else 0
    return 128 + number if number in (signal.SIGINT, signal.SIGTERM) else 1


def signal_of(exitcode: int) -> int:
    """The signal that ended a process, or that it heeded; 0 for none."""
    return -exitcode if exitcode < 0 else exitcode - 128 if exitcode in (128 + n for n in stopping.SIGNALS) else 0


def killed(failures: Mapping[int, ProcessFailure], resume: str = "") -> str | None:
    """A sentence about the ranks that signals have ended; None where the first to fail told its own reason.

    Args:
        failures: By rank.
        resume: How the run is resumed.
    """
    first = min(failure.timestamp for failure in failures.values())
    signals: dict[int, signal.Signals] = {
        rank: signal.Signals(signal_of(failure.exitcode))
        for rank, failure in failures.items()
        if signal_of(failure.exitcode) and failure.timestamp <= first + TOGETHER
    }
    # SIGTERM is what torchrun ends the others with; it is the reason only where there is no other.
    found: dict[int, signal.Signals] = {rank: name for rank, name in signals.items() if name != signal.SIGTERM}
    if not found and len(signals) == len(failures):
        found = signals
    if not found:
        return None
    ranks = ", ".join(f"rank {rank} was ended by {name.name}" for rank, name in sorted(found.items()))
    memory = ", often the system's answer where memory runs out" if signal.SIGKILL in found.values() else ""
    return f"{ranks}{memory}{'; ' if resume else ''}{resume}"


if __name__ == "__main__":
    main()
