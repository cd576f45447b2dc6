"""How much a step does on one device: rows and lengths, from the configuration and what is assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from egrpo.base.errors import UserError
from egrpo.data.datamodule import check_prompts_per_step, check_samples_per_step


@dataclass(frozen=True)
class Assumptions:
    """What a configuration does not say; conf/plan.yaml describes each."""

    plan_tokens: float = 100
    longest_plan: float = 2.0
    prompt_tokens: int = 180
    image_prompt_tokens: int = 30
    compute_efficiency: float = 0.35
    memory_efficiency: float = 0.9
    compiled_layer_ms: float = 0.07
    captured_layer_ms: float = 0.145
    launch_ms: float = 0.9
    link_efficiency: float = 0.7
    host_link_gb_s: float = 25.0
    host_step_gb_s: float = 10.0
    disk_gb_s: float = 0.8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and not name.endswith("_ms")):
                raise UserError(f"assumptions.{name}={value}: it must be above 0")
        if self.longest_plan < 1:
            raise UserError(
                f"assumptions.longest_plan={self.longest_plan}: the longest is at least the mean, give 1 on"
            )
        for name in ("compute_efficiency", "memory_efficiency", "link_efficiency"):
            if getattr(self, name) > 1:
                raise UserError(f"assumptions.{name}={getattr(self, name)}: it is a share of the peak, 1 at most")

    def layer_ms(self, decoding: str) -> float:
        """Milliseconds of a layer and token, whatever it reads."""
        return {"compiled": self.compiled_layer_ms, "captured": self.captured_layer_ms}.get(decoding, self.launch_ms)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sequence."""

    prompt: int  # columns of the context of a plan, L
    plan: int  # columns of plans: the longest, T; 0 = without CoT
    plan_mean: float  # counted ones, a row's mean
    image_context: int  # columns of the context of an image, begin-of-image included
    plan_capacity: int = 0  # columns of plans that the cache has room for, whatever is drawn


@dataclass(frozen=True)
class Workload:
    """A rollout and its update, on one device."""

    rows: int  # sequences, and images, a step
    group_size: int
    cot: bool
    guided: bool  # unconditional rows are drawn beside the conditional ones
    guided_scores: bool  # ... and scored
    rollout_rows: int  # sequences sampled at once, most
    micro_rows: int  # sequences scored at once, most
    chunk_size: int  # positions whose logits are held at once
    decode_batch: int  # images decoded at once
    image_tokens: int
    exact: bool  # padding=exact: unconditional rows differ in length
    updates: int  # optimizer steps a rollout

    @property
    def chunks(self) -> list[range]:
        """Rows that are sampled together."""
        return [range(i, min(i + self.rollout_rows, self.rows)) for i in range(0, self.rows, self.rollout_rows)]

    @property
    def micro_batches(self) -> int:
        """Passes of scoring, all rows once."""
        return -(-self.rows // self.micro_rows)

    @property
    def image_positions(self) -> int:
        """Image tokens of a micro-batch."""
        return self.micro_rows * self.image_tokens

    @property
    def cfg_factor(self) -> int:
        """Rows run for one image while sampling."""
        return 2 if self.guided else 1

    @property
    def score_factor(self) -> int:
        """Rows run for one image while scoring."""
        return 2 if self.guided_scores else 1

    def prefill_rows(self, chunk: Sequence[int]) -> tuple[int, int]:
        """Distinct prompts of a chunk before the plan and before the image: equal ones are run once."""
        prompts = len({row // self.group_size for row in chunk})
        image = len(chunk) if self.cot else prompts
        unconditional = (image if self.exact else 1) if self.guided else 0
        return prompts, image + unconditional


def read_workload(cfg: DictConfig, devices: int, image_tokens: int) -> Workload:
    """Of a composed run over `devices`.

    Raises:
        UserError: the prompts of a step, or their samples, do not divide among the devices.
    """
    if cfg.data.group_across_ranks:
        check_samples_per_step(cfg.data.prompts_per_step, cfg.rollout.group_size, devices)
    else:
        check_prompts_per_step(cfg.data.prompts_per_step, devices)
    rows = cfg.data.prompts_per_step * cfg.rollout.group_size // devices
    guided = cfg.rollout.cfg_weight != 1
    return Workload(
        rows=rows,
        group_size=cfg.rollout.group_size,
        cot=bool(cfg.rollout.cot),
        guided=guided,
        guided_scores=guided and cfg.objective.logps == "guided",
        rollout_rows=min(cfg.rollout.batch_size or rows, rows),
        micro_rows=min(cfg.objective.micro_batch_size or rows, rows),
        chunk_size=cfg.model.get("chunk_size", 512),
        decode_batch=min(cfg.model.get("decode_batch", 16), rows),
        image_tokens=image_tokens,
        exact=cfg.model.padding == "exact",
        updates=cfg.objective.updates_per_rollout,
    )


def limit_lengths(model: Any, cot: bool, assumed: Assumptions) -> Lengths:
    """Prompts and plans at their limits. An image prompt is at most as long as the reasoning conversation around it."""
    prompt = model.get("max_prompt_tokens") or assumed.prompt_tokens
    own = model.get("max_prompt_tokens") or assumed.image_prompt_tokens
    plan = model.max_plan_tokens if cot else 0
    return Lengths(prompt, plan, plan, own + plan + 1, plan)


def mean_lengths(model: Any, cot: bool, assumed: Assumptions) -> Lengths:
    """Prompts and plans as assumed, the others padded to the longest plan."""
    limits = limit_lengths(model, cot, assumed)
    mean = min(assumed.plan_tokens, limits.plan)
    longest = min(round(mean * assumed.longest_plan), limits.plan)
    prompt = min(assumed.prompt_tokens, limits.prompt)
    context = min(assumed.image_prompt_tokens + longest + 1, limits.image_context)
    return Lengths(prompt, longest, mean, context, limits.plan)
