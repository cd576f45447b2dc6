"""`python -m egrpo.export run=FOLDER target=DIR`: a run's checkpoint as a directory that plain transformers loads."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.entry import run
from egrpo.policy import JanusPolicy
from egrpo.training.checkpoints import find_checkpoint, load_policy_weights


def export(cfg: DictConfig) -> None:
    """Rebuilds the run's policy, puts the checkpoint's weights in, merges an adapter if there is one, saves."""
    folder = Path(cfg.run)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"run={folder}: this is not the folder of a run (no config.yaml in it)")
    checkpoint = find_checkpoint(folder, cfg.checkpoint)
    policy: JanusPolicy = instantiate(OmegaConf.load(folder / "config.yaml").model, _convert_="object")()
    load_policy_weights(policy, checkpoint)
    policy.export(cfg.target)
    print(f"exported {checkpoint}")
    print(cfg.target)


if __name__ == "__main__":
    run(export, "export")
