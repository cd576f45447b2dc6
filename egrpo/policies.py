"""A policy to draw with: from a model, from a run of training, or from one of its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.base.errors import UserError
from egrpo.checkpoints import check_checkpoint, find_checkpoint, put_weights, saved_weights
from egrpo.paths import resolve
from egrpo.policy import JanusPolicy
from egrpo.yaml_files import read_yaml

RUN_DEPTH = 3  # folders above a checkpoint in which its run is looked for: RUN/checkpoints/last.ckpt
EXPORTED = "egrpo.yaml"  # beside an export's weights: how the run's model and rollout were set
TRUST = "EGRPO_TRUST"  # environment variable: packages, comma-separated, that a run's settings may call
KEPT = ("decoding",)  # a run may have been trained elsewhere, and this changes nothing that is drawn


def load_policy(
    model: DictConfig | Mapping[str, Any], ckpt_path: str | Path | None = None, *, given: Sequence[str] = ()
) -> JanusPolicy:
    """Builds the policy that is asked for, in evaluation mode, on the CPU.

    Args:
        model: A node as conf/model has it. Its `path` is a folder that transformers loads (an export, say),
            `package:...`, or a name on the hub.
        ckpt_path: The folder of a run, whose last checkpoint is taken, or a checkpoint inside one, written by any
            strategy, or an export of one. The model is then set as the run's own config.yaml says, with the trained
            weights; None = `model` as it is.
        given: Names in `model` that take the place of the run's own ("templates", "path"; see `given_settings`);
            `KEPT` always do.

    Raises:
        UserError: `ckpt_path` is no checkpoint, or does not fit.
        FileNotFoundError: There is no such model.
    """
    node, checkpoint = _asked_for(model, ckpt_path, given)
    return built(node) if checkpoint is None else _trained(node, checkpoint)


def weights_stamp(
    model: DictConfig | Mapping[str, Any], ckpt_path: str | Path | None = None, *, given: Sequence[str] = ()
) -> str | None:
    """A hash of how a policy would be built, and of its files' names, sizes and times; no weights are read.

    Equal stamps mean the same policy, the reverse does not hold. None where files are not on this machine. Arguments
    and errors as in `load_policy`.
    """
    node, checkpoint = _asked_for(model, ckpt_path, given)
    text = OmegaConf.select(OmegaConf.create(dict(node)), "templates.reasoning_file")
    roots = [resolve(str(node["path"])), *[path for path in (checkpoint, text and resolve(text)) if path]]
    if not all(root.exists() for root in roots):
        return None
    files = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()]
    settings = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    return hashlib.sha256(json.dumps([settings, stats], sort_keys=True, default=str).encode()).hexdigest()


def _asked_for(
    model: DictConfig | Mapping[str, Any], ckpt_path: str | Path | None, given: Sequence[str]
) -> tuple[DictConfig | Mapping[str, Any], Path | None]:
    """The model's node, and the checkpoint whose weights it gets, if any."""
    if ckpt_path is None:
        return model, None
    changed = _picked(model, [*KEPT, *given])
    if is_export(ckpt_path):
        node = _changed(_read_settings(Path(ckpt_path) / EXPORTED).model, {**changed, "path": str(ckpt_path)})
        return node, None
    folder, checkpoint = run_of(ckpt_path)
    return _changed(run_config(folder).model, changed), checkpoint


def policy_of_run(folder: Path, checkpoint: Path, changed: Mapping[str, Any] | None = None) -> JanusPolicy:
    """The policy of a run's config.yaml with a checkpoint's weights; `changed`: dotted name -> other setting."""
    return _trained(_changed(run_config(folder).model, changed or {}), checkpoint)


def load_untouched(
    model: DictConfig | Mapping[str, Any], ckpt_path: str | Path, *, given: Sequence[str] = ()
) -> JanusPolicy:
    """The policy that a run began with; arguments and errors as in `load_policy`."""
    folder, _ = run_of(ckpt_path)
    return built(_changed(run_config(folder).model, _picked(model, [*KEPT, *given])))


def is_export(path: str | Path) -> bool:
    """Whether it is the folder of a run's export, which tells how its model is set."""
    return (Path(path) / EXPORTED).is_file()


def save_settings(folder: Path, target: Path) -> None:
    """Leaves beside an export how the run in `folder` set its model, whose adapter is merged, and drew its samples."""
    cfg = run_config(folder)
    model = _changed(cfg.model, {"path": ".", "adapter": None})
    OmegaConf.save({"model": model, "rollout": cfg.get("rollout") or {}}, target / EXPORTED)


def trained_settings(ckpt_path: str | Path) -> dict[str, Any]:
    """How the run of a checkpoint or an export drew its samples: cot, cfg_weight, temperature, ..."""
    cfg = _read_settings(Path(ckpt_path) / EXPORTED) if is_export(ckpt_path) else run_config(run_of(ckpt_path)[0])
    found = OmegaConf.to_container(cfg.get("rollout") or OmegaConf.create({}), resolve=True)
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def built(model: DictConfig | Mapping[str, Any]) -> JanusPolicy:
    """The policy of a model node, in evaluation mode."""
    policy: JanusPolicy = instantiate(model, _convert_="object")()
    return policy.eval()


def run_of(ckpt_path: str | Path) -> tuple[Path, Path]:
    """The folder of the run and the checkpoint, of either.

    Raises:
        UserError: There is neither, or the checkpoint is in no run's folder.
    """
    path = Path(ckpt_path).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        raise UserError(f"ckpt_path={path}: this is a model, not a run; load it with model.path={path}")
    if (path / "config.yaml").is_file():
        return path, find_checkpoint(path, "last")
    check_checkpoint(str(path))
    for folder in list(path.absolute().parents)[:RUN_DEPTH]:
        if (folder / "config.yaml").is_file():
            return folder, path
    raise UserError(
        f"ckpt_path={path}: the config.yaml of its run is not above it, so the model is not known; give the "
        "checkpoint where training left it, as FOLDER/checkpoints/last.ckpt, or export the run and use model.path="
    )


def run_config(folder: Path) -> DictConfig:
    """What a run of training left as its config.yaml.

    Raises:
        UserError: It is not the folder of such a run.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not the folder of a run (no config.yaml in it)")
    return _read_settings(folder / "config.yaml")


def given_settings(overrides: Sequence[str]) -> list[str]:
    """Names in the model node that overrides of a command set: model.path=X, model/templates=X, rollout.padding=X."""
    keys = [override.partition("=")[0].lstrip("+~").partition("@")[0] for override in overrides]
    names = [key[len("model") + 1 :] for key in keys if key.startswith(("model.", "model/"))]
    shared = ("rollout.padding", "rollout.strip_plans", "rollout.decoding")
    return names + [key.removeprefix("rollout.") for key in keys if key in shared]


def model_hash(policy: JanusPolicy) -> str:
    """SHA-256, in hex, over names, types, shapes and bytes of all weights, wherever they are.

    Equal for equal weights, whichever file they came from; an adapter and its merged export differ.
    """
    digest = hashlib.sha256()
    for name, value in sorted(policy.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _trained(node: DictConfig | Mapping[str, Any], checkpoint: Path) -> JanusPolicy:
    weights = saved_weights(checkpoint)  # first: a damaged one is reported before any model is loaded
    policy = built(node)
    put_weights(policy, weights, checkpoint)
    return policy


def _read_settings(path: Path) -> DictConfig:
    cfg = read_yaml(path)
    model = cfg.get("model")
    if not isinstance(model, DictConfig) or "_target_" not in model:
        raise UserError(f"{path.parent} is not the folder of a training run (its {path.name} names no model)")
    _check_targets(model, path)
    return cfg


def _check_targets(node: Any, path: Path) -> None:
    """Raises UserError where settings of a run, which may be anybody's, call other code than egrpo's policies."""
    given = [name.strip() for name in os.environ.get(TRUST, "").split(",")]
    trusted = tuple(f"{name}." for name in ["egrpo.policy", *given] if name)
    for key, value in node.items() if isinstance(node, DictConfig) else enumerate(node):
        if key == "_target_" and not f"{value}.".startswith(trusted):
            raise UserError(
                f"{path}: its model is made by {value}, which is none of egrpo's policies and would be run: "
                f"if you trust it, set {TRUST}={str(value).partition('.')[0]} in the environment"
            )
        if OmegaConf.is_config(value):
            _check_targets(value, path)


def _changed(node: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    for name, value in settings.items():
        OmegaConf.update(node, name, value, merge=False, force_add=True)
    return node


def _picked(model: DictConfig | Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The named settings of a model node, those of them that it has."""
    node = model if isinstance(model, DictConfig) else OmegaConf.create(dict(model))
    missing = object()
    found = {name: OmegaConf.select(node, name, default=missing) for name in names}
    return {name: value for name, value in found.items() if value is not missing}
