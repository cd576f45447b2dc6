"""`make campaign`: tries all cases, prints those that do not end clearly and the counts; exits with 1 if there are any.

`make campaign ARGS="only=convert"` tries those of one command, or whose command line holds that text.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: it reads the thread count once
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from tests.campaign.cases import CASES
from tests.campaign.runner import KINDS, judge


def main(words: list[str]) -> int:
    """Tries the chosen cases; gives the exit status."""
    only = next((word.partition("=")[2] for word in words if word.startswith("only=")), "")
    if unknown := [word for word in words if not word.startswith("only=")]:
        print(f"error: {' '.join(unknown)}: give only=COMMAND or only=TEXT", file=sys.stderr)
        return 1
    commands = {case.command for case in CASES}
    chosen = [case for case in CASES if (case.command == only if only in commands else only in case.name)]
    if not chosen:
        print(f"error: only={only}: no case has this; commands are {', '.join(sorted(commands))}", file=sys.stderr)
        return 1
    started, kinds, by_command = time.monotonic(), Counter[str](), Counter[str]()
    for case in chosen:
        judged = judge(case)
        kinds[judged.kind] += 1
        by_command[case.command] += 1
        if judged.kind != "clear" or "verbose" in os.environ.get("CAMPAIGN", ""):
            print(f"{judged.kind} ({judged.seconds:.1f} s): {case.name}\n    {judged.why}", flush=True)
    print(", ".join(f"{command} {count}" for command, count in sorted(by_command.items())))
    print(f"{len(chosen)} inputs in {time.monotonic() - started:.0f} s")
    print("  ".join(f"{kind} {kinds[kind]}" for kind in KINDS))
    return 0 if kinds["clear"] == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
