"""Before anything is drawn: prompts that some reward cannot judge."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from egrpo.base.errors import UserError
from egrpo.rewards.base import Reward
from egrpo.rewards.ensemble import RewardEnsemble
from egrpo.rewards.measuring import STOP
from egrpo.types import PromptRecord

SHOWN = 20  # sentences of a message

log = logging.getLogger(__name__)


def check_prompts(
    rewards: RewardEnsemble,
    judges: Mapping[str, Reward],
    training: Sequence[PromptRecord],
    validation: Sequence[PromptRecord],
) -> None:
    """Asks every reward for the prompts that it cannot judge, and the judges for those of validation.

    Where a failing reward is to be dropped, what it cannot judge is only logged.

    Raises:
        UserError: a reward that stops the run when it fails cannot judge a prompt; all of them are named.
    """
    every = list({id(record): record for record in [*training, *validation]}.values())
    faults: list[str] = []
    for name, weighted in rewards.rewards.items():
        found = _faults(name, weighted.reward, every)
        if weighted.on_error == STOP:
            faults += found
        elif found:
            log.warning("%s", _told(found))
    for name, judge in judges.items():
        faults += _faults(name, judge, validation)
    if faults:
        raise UserError(_told(faults))


def _faults(name: str, reward: Reward, records: Sequence[PromptRecord]) -> list[str]:
    check = getattr(reward, "check", None)
    return [] if check is None or not records else [f"{name}: {sentence}" for sentence in check(list(records))]


def _told(faults: Sequence[str]) -> str:
    lines = [f"  {fault}" for fault in dict.fromkeys(faults)]
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(["these prompts cannot be judged by the rewards that were chosen:", *lines[:SHOWN], *more])
