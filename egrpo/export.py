"""`python -m egrpo.export run=FOLDER target=DIR`: a run's checkpoint as a directory that plain transformers loads."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from egrpo.base.files import whole_folder
from egrpo.base.targets import MARK, claim_target
from egrpo.checkpoints import find_checkpoint
from egrpo.entry import run
from egrpo.policies import EXPORTED, policy_of_run, run_config, save_settings


def export(cfg: DictConfig) -> None:
    """Rebuilds the run's policy, puts the checkpoint's weights in, merges an adapter if there is one, saves."""
    folder = Path(cfg.run)
    run_config(folder)
    checkpoint = find_checkpoint(folder, cfg.checkpoint)
    target = Path(cfg.target).expanduser()
    policy = policy_of_run(folder, checkpoint)
    claim_target(target, "target", "export", signs=(EXPORTED,))
    with whole_folder(target, replaces=MARK) as part:
        policy.export(part)
        save_settings(folder, part)
    print(f"exported {checkpoint}")
    print(target)


if __name__ == "__main__":
    run(export, "export")
