"""`python -m egrpo.shapes.pretrain_rewards`: the reward networks of the shapes world, from nothing.

Two processes side by side, a thread each. Leaves in `target` a directory for each network, which transformers loads,
and `verdict.json` with what was measured. `only=[hps,git]` makes some of them; a run that was interrupted goes on in
its own folder (hydra.run.dir=FOLDER) with the networks that are not finished.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from egrpo.base.errors import UserError
from egrpo.entry import run, save_config
from egrpo.shapes.pretrain.jobs import one_thread
from egrpo.shapes.pretrain_rewards.jobs import make_network


def pretrain_rewards(cfg: DictConfig) -> None:
    """Trains and measures; prints the verdict. Raises UserError where `only` names what `networks` has not."""
    names = list(cfg.networks) if cfg.only is None else list(cfg.only)
    unknown = [name for name in names if name not in cfg.networks]
    if unknown:
        raise UserError(f"only={unknown} names no network of {list(cfg.networks)}")
    target = Path(cfg.target)
    save_config(cfg, target)
    recipes = cast(dict[str, Any], OmegaConf.to_container(cfg.networks, resolve=True))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=one_thread) as pool:
        jobs = {n: pool.submit(make_network, n, recipes[n], cfg.seed, cfg.held_out, target) for n in names}
        verdict = {name: job.result() for name, job in jobs.items()}
    path = target / "verdict.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(earlier | verdict, indent=2) + "\n")
    print(json.dumps(verdict, indent=2))
    print(target)


if __name__ == "__main__":
    run(pretrain_rewards, "pretrain_rewards")
