"""From the configuration of `python -m egrpo.analyze` to the work it asks for, and to what the report says of it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.analysis.study import StudyDescription
from egrpo.analysis.work import Sampling, Setting, Sizes, Work, choose_prompts
from egrpo.base.errors import UserError
from egrpo.data import read_prompts
from egrpo.provenance import git_commit, versions


def work_of(cfg: DictConfig) -> Work:
    """What is to be drawn.

    Raises:
        UserError: a setting is not as it must be, or there are too few prompts.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    if not plain["settings"]:
        raise UserError("the study has no settings: give at least one, as settings.base.cot=true")
    chosen = choose_prompts(read_prompts(cfg.prompts), cfg.num_prompts, splits=plain["splits"], seed=cfg.seed)
    how = {name: plain["rollout"][name] for name in ("cfg_weight", "temperature", "top_k", "top_p", "batch_size")}
    return Work(
        folder=Path(cfg.run_dir),
        settings={name: _setting(name, node or {}, plain["model"]) for name, node in plain["settings"].items()},
        prompts=chosen,
        sizes=Sizes(**{f.name: plain[f.name] for f in fields(Sizes)}),
        sampling=Sampling(seed=cfg.seed, **how),
        ensemble=plain["ensemble"],
        judges=plain["judge"],
        device=cfg.model_device,
        threads=cfg.threads,
    )


def _setting(name: str, node: dict[str, Any], model: dict[str, Any]) -> Setting:
    known = [f.name for f in fields(Setting) if f.name != "name"]
    for key in node:
        if key not in known:
            raise UserError(f"settings.{name}.{key}: a setting has no such key; it has {', '.join(known)}")
    return Setting(name, **{**node, "model": node.get("model") or model})


def decisive(work: Work) -> dict[str, Any]:
    """All that decides the records, as JSON; a study goes on with nothing else."""
    prompts = json.dumps([record.to_dict() for record in work.prompts], sort_keys=True)
    sampling = {name: value for name, value in asdict(work.sampling).items() if name != "batch_size"}
    return {
        **asdict(work.sizes),
        "seed": sampling.pop("seed"),
        "rollout": sampling,
        "reward": work.ensemble["rewards"],
        "judge": work.judges,
        "settings": {
            name: {"cot": setting.cot, "ckpt_path": setting.ckpt_path, "model": dict(setting.model)}
            for name, setting in work.settings.items()
        },
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),  # last: other keys tell why it changed
    }


def description(cfg: DictConfig, work: Work, overrides: Sequence[str]) -> StudyDescription:
    """What the report says of the study.

    Args:
        cfg: The command's configuration.
        work: What it asks for.
        overrides: Of the command line, as given.
    """
    told: Any = OmegaConf.to_container(cfg.report, resolve=True)
    pair = told.pop("cot_pair")
    return StudyDescription(
        command=" ".join(["python -m egrpo.analyze", *map(shlex.quote, overrides)]),
        settings={name: setting.description or name for name, setting in work.settings.items()},
        baseline=told.pop("baseline") or next(iter(work.settings)),
        sizes=asdict(work.sizes),
        seed=cfg.seed,
        versions=versions() | {"commit": git_commit() or "unknown"},
        config=OmegaConf.to_yaml(cfg, resolve=True),
        entropy_policy=instantiate(cfg.entropy_policy),
        runs={name: _run(setting) for name, setting in work.settings.items()},
        cot_pair=(pair[0], pair[1]) if pair else None,
        training_pairs=[(before, after) for before, after in told.pop("training_pairs")],
        **told,
    )


def _run(setting: Setting) -> Path | None:
    """The run that a setting's weights come from, if it is known."""
    if setting.ckpt_path is None:
        return None
    path = Path(setting.ckpt_path)
    places = [folder for folder in (path, *list(path.absolute().parents)[:3]) if (folder / "metrics.csv").is_file()]
    return places[0] if places else None
