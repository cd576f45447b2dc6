"""Signals, in processes of their own, and folders that cannot be written."""

from __future__ import annotations

import signal

from tests.campaign.case import Case, refused

SWEEP = ("-m", "seed=0,1", "logger=none", "hydra.sweep.dir=s")


def stopped(number: int, after: float, *words: str, command: str = "train") -> Case:
    """Ended by a signal: 128 and its number, and a sentence that says what was kept or how to resume."""
    names = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    says = (f"stopped by {names}", "before anything was computed|resume|run the same command again")
    return Case(command, words, says, code=128 + number, signal=number, after=after, limit=120)


CASES = [
    stopped(signal.SIGTERM, 1, "logger=none"),
    stopped(signal.SIGINT, 12, "logger=none", "hydra.run.dir=out"),
    stopped(signal.SIGTERM, 20, "logger=none", "hydra.run.dir=out"),
    stopped(signal.SIGTERM, 20, *SWEEP),
    stopped(signal.SIGINT, 0.5, "what=all", command="download"),
    *refused(
        "generate",
        ("prompts=[a]  hydra.run.dir=/dev/null/x", "/dev/null/x", "write to another folder|is a file"),
        ("prompts=[a]  hydra.run.dir=/sys/x", "/sys/x", "write to another folder|permission"),
    ),
]
