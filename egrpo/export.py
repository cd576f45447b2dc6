"""`python -m egrpo.export run=FOLDER target=DIR`: a run's checkpoint as a directory that plain transformers loads."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from egrpo.checkpoints import find_checkpoint
from egrpo.entry import run
from egrpo.policies import policy_of_run, run_config, save_settings


def export(cfg: DictConfig) -> None:
    """Rebuilds the run's policy, puts the checkpoint's weights in, merges an adapter if there is one, saves."""
    folder = Path(cfg.run)
    run_config(folder)
    checkpoint = find_checkpoint(folder, cfg.checkpoint)
    policy = policy_of_run(folder, checkpoint)
    policy.export(cfg.target)
    save_settings(folder, Path(cfg.target))
    print(f"exported {checkpoint}")
    print(cfg.target)


if __name__ == "__main__":
    run(export, "export")
