"""Dry calls of what a run will need only after minutes, so that a bad setting is told at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import DeepSpeedStrategy
from omegaconf import DictConfig

from egrpo.base.errors import UserError
from egrpo.data.datamodule import check_prompts_per_step, check_samples_per_step
from egrpo.rewards import Reward, RewardEnsemble
from egrpo.rewards.checking import check_prompts
from egrpo.settings.check import nearest
from egrpo.training.settings import RolloutSettings


def check_entropy_policy(entropy_policy: Callable[..., Any]) -> None:
    """Calls the entropy policy once on two sequences of two text and two image tokens.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    mask = torch.ones(2, 4, dtype=torch.bool)
    is_image = torch.tensor([[False, False, True, True]] * 2)
    _told("entropy_policy", entropy_policy, torch.tensor([1.0, -1.0]), torch.rand(2, 4), mask, is_image)


def check_optimizer(optimizer: Callable[..., Any], scheduler: Callable[..., Any]) -> None:
    """Builds optimizer and scheduler once for a single weight.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    _told("scheduler", scheduler, _told("optimizer", optimizer, [weight]))


def check_share(data: Any, rollout: RolloutSettings, ranks: int) -> None:
    """Before anything is measured: whether a step's prompts, or their samples, divide among the ranks.

    Raises:
        UserError: they do not.
    """
    if rollout.group_across_ranks:
        check_samples_per_step(data.prompts_per_step, rollout.group_size, ranks)
    else:
        check_prompts_per_step(data.prompts_per_step, ranks)


def check_records(data: Any, rewards: RewardEnsemble, judges: Mapping[str, Reward], *, validates: bool) -> None:
    """Before anything is drawn: whether every reward can judge the prompts of training and, if it `validates`, of that.

    Raises:
        UserError: a reward cannot; its sentences name the prompts.
    """
    check_prompts(rewards, judges, data.train_records, data.val_records if validates else [])


def rollouts_under(usual: RolloutSettings, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, RolloutSettings]:
    """How samples are drawn under each of `also_validate`'s changes, {"without_plan": {"cot": False}}.

    Raises:
        UserError: a change is none of the rollout's settings, or out of range.
    """
    names = {field.name for field in fields(RolloutSettings)}
    for name, changed in changes.items():
        if not isinstance(changed, Mapping):
            raise UserError(f"also_validate.{name}={changed}: give settings of the rollout, such as {{cot: false}}")
        unknown = sorted({str(key) for key in changed} - names)
        if unknown:
            raise UserError(
                f"also_validate.{name}.{unknown[0]}: there is no such setting; {nearest(unknown[0], names)}"
            )
    return {name: replace(usual, **{str(k): v for k, v in c.items()}) for name, c in changes.items()}


def check_run(cfg: DictConfig) -> None:
    """Everything that can be said of a composed run before anything is loaded; plans are refused for the same reasons.

    Args:
        cfg: As conf/train.yaml has it.

    Raises:
        UserError: training would refuse a setting, or settings that do not go together.
    """
    check_trainer(cfg.trainer)
    instantiate(cfg.module.rollout)
    instantiate(cfg.module.objective)
    check_entropy_policy(instantiate(cfg.entropy_policy, _convert_="object"))
    check_optimizer(instantiate(cfg.optimizer, _convert_="object"), instantiate(cfg.scheduler, _convert_="object"))
    if divided_by_zero(cfg.trainer.strategy) and cfg.model.get("gradient_checkpointing", False):
        trainable = cfg.model.get("trainable", ["language_model"])
        check_recomputed(cfg.model.get("adapter") is None and "language_model" in trainable)


def divided_by_zero(strategy: Any) -> bool:
    """Whether a trainer's `strategy`, as it is configured, has DeepSpeed divide the weights (stage 3)."""
    if not isinstance(strategy, Mapping | DictConfig):
        return "deepspeed_stage_3" in str(strategy)
    if not issubclass(get_class(strategy["_target_"]), DeepSpeedStrategy):
        return False
    config = strategy.get("config") or {}
    zero = config.get("zero_optimization") if isinstance(config, Mapping | DictConfig) else None
    return int((zero or strategy).get("stage", 2)) == 3


def check_recomputed(trains_all_layers: bool) -> None:
    """Of layers that DeepSpeed divides and the backward pass computes again: torch keeps frozen weights by reference,
    and would find them released.

    Raises:
        UserError: some are frozen.
    """
    if not trains_all_layers:
        raise UserError(
            "model.gradient_checkpointing=true does not go with an adapter on weights that DeepSpeed divides: "
            "set model.gradient_checkpointing=false, or another strategy, such as strategy=deepspeed_stage_2"
        )


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuses settings of Lightning's Trainer that have another name here.

    Raises:
        UserError: accumulation or clipping is asked of the trainer.
    """
    if (batches := settings.get("accumulate_grad_batches")) not in (None, 1):
        raise UserError(
            f"trainer.accumulate_grad_batches={batches}: gradients are always those of a step's whole batch; set its "
            "size by data.prompts_per_step, and what is held at once by objective.micro_batch_size and "
            "rollout.batch_size"
        )
    if (norm := settings.get("gradient_clip_val")) is not None:
        raise UserError(f"trainer.gradient_clip_val={norm}: set objective.max_grad_norm={norm} in its place")


def check_devices(settings: Mapping[str, Any]) -> None:
    """Whether this machine has the accelerator and the devices that the trainer is to use.

    Raises:
        UserError: it has not.
    """
    name, devices = str(settings.get("accelerator") or "auto"), settings.get("devices")
    kinds = {kind: AcceleratorRegistry[kind]["accelerator"] for kind in AcceleratorRegistry.available_accelerators()}
    there = sorted(kind for kind, accelerator in kinds.items() if accelerator.is_available())
    if name not in ("auto", "gpu", *kinds):
        raise UserError(
            f"trainer.accelerator={name}: there is no such accelerator; choose auto, gpu, {', '.join(kinds)}"
        )
    gpu = next((kind for kind in ("cuda", "mps") if kind in there), None)
    kind = (gpu or ("cpu" if name == "auto" else None)) if name in ("auto", "gpu") else name
    if kind not in there:
        raise UserError(
            f"trainer.accelerator={name}: this machine has none (it has {', '.join(there)}); give auto or cpu"
        )
    few = devices == [] or (isinstance(devices, int) and devices < (1 if kind == "cpu" else -1)) or devices == 0
    if few:
        raise UserError(f"trainer.devices={devices}: give at least 1, or auto")
    if kind == "cpu":
        return
    count = kinds[kind].auto_device_count()
    wanted = [devices - 1] if isinstance(devices, int) else devices if isinstance(devices, Sequence) else []
    if not isinstance(wanted, str) and any(isinstance(number, int) and number >= count for number in wanted):
        raise UserError(f"trainer.devices={devices}: this machine has {count} of kind {kind}")


def _told(group: str, part: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return part(*arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{group}: {error}") from error
