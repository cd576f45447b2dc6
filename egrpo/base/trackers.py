"""W&B's logger, with what W&B refuses found out before a run has done anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from egrpo.base.errors import UserError

LONGEST_NAME = 128  # characters of a run's name, group and job type
LONGEST_TAG = 64
OFFLINE = ("offline", "dryrun", "disabled")  # of WANDB_MODE


class WandbRun(WandbLogger):
    """Lightning's W&B logger; names and tags that are longer than W&B takes are cut in their middle.

    Args:
        name: Of the run.
        group: Of runs.
        job_type: Within the group.
        tags: Of the run; empty ones are left out.
        offline: The run is only written down, for `wandb sync`.
        settings: Further ones of `lightning.pytorch.loggers.WandbLogger` and of `wandb.init`.

    Raises:
        UserError: the run is to be online, and there is no key.
    """

    def __init__(
        self,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] | None = None,
        offline: bool = False,
        **settings: Any,
    ):
        if offline:
            settings.setdefault("mode", "offline")  # W&B may have read WANDB_MODE before Lightning sets it
        elif settings.get("mode", os.environ.get("WANDB_MODE")) not in OFFLINE:
            check_key("logger.wandb.offline=false")
        super().__init__(
            name=shortened(name, LONGEST_NAME),
            group=shortened(group, LONGEST_NAME),
            job_type=shortened(job_type, LONGEST_NAME),
            tags=list(dict.fromkeys(shortened(str(tag), LONGEST_TAG) for tag in tags or () if str(tag))),
            offline=offline,
            **settings,
        )


def shortened(text: str | None, longest: int) -> str | None:
    """A text of at most `longest` characters: its start and its end, where runs differ, around "..."."""
    if text is None or len(text) <= longest:
        return text
    start = (longest - 3) // 2
    return f"{text[:start]}...{text[-(longest - 3 - start) :]}"


def check_key(setting: str) -> None:
    """Whether W&B lets us in.

    Args:
        setting: What needs the key, for the message.

    Raises:
        UserError: there is no key.
    """
    import wandb

    try:
        wandb.Api()
    except wandb.errors.UsageError as error:
        raise UserError(f"{setting} needs a W&B key: run `wandb login`, or set WANDB_API_KEY, then again") from error
