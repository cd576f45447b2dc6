"""One training step of GRPO for an autoregressive image generator, as a LightningModule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from egrpo import distributed
from egrpo.algorithm import group_advantages, policy_loss
from egrpo.algorithm.entropy_policies import ranks_padding
from egrpo.checkpoints import check_fit, trained_names
from egrpo.images import to_images
from egrpo.policy import JanusPolicy
from egrpo.rewards import Reward, RewardEnsemble
from egrpo.tensor_files import check_finite
from egrpo.training.beside import beside, can_overlap
from egrpo.training.clock import Clock
from egrpo.training.engines import Engine, engine_for
from egrpo.training.metrics import rollout_metrics, speed_metrics
from egrpo.training.micro_batches import columns_of, micro_batches
from egrpo.training.optimizers import go_on_with_schedule
from egrpo.training.settings import (
    Objective,
    RolloutSettings,
    TrainingError,
    earlier_occurrences,
    own_samples,
    token_denominator,
)
from egrpo.training.validation import Validation
from egrpo.training.whole_batch import own_tokens, whole_rollout, whole_table
from egrpo.types import PromptRecord, RewardTable, Rollout, TokenScores

log = logging.getLogger(__name__)


class GRPOModule(LightningModule):
    """Trains a policy with group-relative advantages that an entropy policy turns into token advantages.

    Args:
        policy: Builds the policy (called once, when the trainer is ready).
        reference: Builds the frozen reference from the fresh policy; not called where `objective.beta` is 0.
        rewards: What is optimised.
        entropy_policy: (advantages, entropy, mask, is_image) -> (token advantages, metrics).
        optimizer: Takes the trainable parameters.
        scheduler: Takes the optimizer; stepped once an optimizer step.
        rollout: How samples are drawn.
        objective: What is done with them.
        judges: Rewards that are measured in validation but never optimised; their names become metric names.
        seed: Of all sampling.
    """

    def __init__(
        self,
        policy: Callable[[], JanusPolicy],
        reference: Callable[[JanusPolicy], Any],
        rewards: RewardEnsemble,
        entropy_policy: Callable[..., tuple[Tensor, dict[str, Any]]],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        rollout: RolloutSettings,
        objective: Objective,
        judges: Mapping[str, Reward] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # the reference and frozen weights are not in checkpoints; see on_load_checkpoint
        self.make_policy, self.make_reference = policy, reference
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        # Rewards live in plain objects, outside the module tree: neither trained, nor saved, nor sharded.
        self.rewards = rewards
        self.entropy_policy = entropy_policy
        self.rollout_settings, self.objective = rollout, objective
        self.seed = seed
        self.clock = Clock()
        self.validation = Validation(rewards, judges or {}, rollout, seed)
        self.last_rollout: tuple[list[PromptRecord], Rollout, RewardTable] | None = None
        self.policy: JanusPolicy | None = None
        self.reference: Any = None
        self.engine = Engine(self)
        self.resume_from: str | None = None  # some strategies need to know it before Lightning loads it

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        self.engine = engine_for(self)
        torch.manual_seed(self.seed)  # new weights (adapters) start alike on all ranks, under every strategy
        with self.engine.building():
            self.policy = self.make_policy()
            self.policy.lockstep = self.engine.lockstep
            if self.objective.beta:  # without a KL term nothing asks for it
                self.reference = self.make_reference(self.policy)
        self.engine.divide(self.policy, self.reference)
        self.policy.train()  # transformers loads in evaluation mode, where gradient checkpointing stays off
        distributed.seed_this_rank(self.seed)

    def setup(self, stage: str) -> None:
        self.engine.weights_changed()  # a checkpoint may be loaded next

    def configure_optimizers(self) -> Any:
        assert self.policy is not None
        optimizer = self.make_optimizer([p for p in self.policy.parameters() if p.requires_grad])
        return [optimizer], [self.make_scheduler(optimizer)]

    def on_train_start(self) -> None:
        if self.global_step:
            go_on_with_schedule(self.lr_schedulers())

    def training_step(self, records: list[PromptRecord], batch_idx: int) -> None:
        self.clock.new_step()
        settings = self.rollout_settings
        with self.clock("rollout"):
            rollout = self.sample(records, self.global_step // self.objective.updates_per_rollout)
        grouped, _ = own_samples(records, settings)
        images = to_images(rollout.pixels)
        overlap = settings.overlap_rewards
        overlap = self.device.type == "cpu" if overlap is None else overlap
        overlap = overlap and can_overlap(weighted.reward for weighted in self.rewards.rewards.values())
        with beside(overlap, self.rewards, images, grouped) as rewards:
            with self.clock("reference"):
                ref_logps = self.reference_logps(rollout)
            with self.clock("rewards"):  # what is left to wait for
                table = rewards()
        whole_rewards = whole_table(table)
        mixed = self.rewards.mix(whole_rewards, settings.group_size)
        advantages = group_advantages(mixed, settings.group_size).to(self.device)
        metrics = self.update(rollout, advantages, ref_logps)
        if self.reference is None:
            del metrics["kl"]  # it would be measured against the policy itself
        self.last_rollout = (grouped, rollout, table)
        whole = whole_rollout(rollout)
        metrics |= rollout_metrics(whole, whole_rewards, mixed, settings.group_size)
        decoding = {"perf/decoding": float(self.engine.fast_decoding)}
        self.report(metrics | speed_metrics(whole, self.clock.step) | decoding)

    def sample(self, records: list[PromptRecord], step: int) -> Rollout:
        """This rank's samples, G a prompt in group order."""
        assert self.policy is not None
        s = self.rollout_settings
        earlier = earlier_occurrences([r.prompt for r in records], on_all_ranks=s.group_across_ranks)
        grouped, indices = own_samples(records, s, earlier)
        try:
            with self.engine.drawing():
                return self.policy.rollout(
                    grouped,
                    1,
                    sample_offset=indices,
                    seed=self.seed,
                    step=step,
                    cot=s.cot,
                    cfg_weight=s.cfg_weight,
                    temperature=s.temperature,
                    guided_logps=self.objective.logps == "guided",
                    chunk=s.batch_size,
                    top_k=s.top_k,
                    top_p=s.top_p,
                    plan_top_k=s.plan_top_k,
                    padded_together=self.objective.micro_batch_size,
                )
        except FloatingPointError as error:
            raise TrainingError(
                f"step {self.global_step}: {error}; go on from an earlier checkpoint with ckpt_path=... and a lower "
                "optimizer.lr"
            ) from error

    def micro_batches(self, rollout: Rollout) -> list[Tensor]:
        """Indices of the rows that are scored at once; those that published padding pads together stay together."""
        assert self.policy is not None
        return micro_batches(rollout, self.objective.micro_batch_size, by_length=self.policy.padding == "exact")

    @torch.no_grad()
    def reference_logps(self, rollout: Rollout) -> Tensor:
        """[N, T] of the frozen reference, a micro-batch at a time; without one (beta 0) those of the sampling."""
        if self.reference is None:
            return rollout.sampled.logps
        settings: dict[str, Any] = {"temperature": self.rollout_settings.temperature, "entropy": False}
        found = torch.zeros_like(rollout.sampled.logps)
        reads_policy = getattr(self.reference, "reads_policy", False)
        with self.engine.root_weights() if reads_policy else nullcontext():
            for rows in self.micro_batches(rollout):
                found[rows] = self.reference(rollout[rows], **settings).logps
        return found

    @torch.no_grad()
    def with_padding_scored(self, rollout: Rollout) -> Rollout:
        """The rollout with the entropies of its plans as the released code ranks them.

        They are those of a scoring pass, padding included, as wide as the longest plan of a micro-step: consecutive
        samples, `objective.micro_batch_size` of them (published: one prompt's group). Columns beyond that hold NaN.
        """
        assert self.policy is not None and rollout.text is not None
        settings: dict[str, Any] = {"temperature": self.rollout_settings.temperature, "at_padding": True}
        entropy = torch.zeros_like(rollout.text.entropy)
        with self.clock("padding"):
            for rows in micro_batches(rollout, self.objective.micro_batch_size, by_length=False):
                entropy[rows] = self.policy(rollout[rows], segment="text", **settings).entropy
        return replace(rollout, text=replace(rollout.text, entropy=entropy))

    def update(self, rollout: Rollout, advantages: Tensor, ref_logps: Tensor) -> dict[str, Any]:
        """All optimizer steps on one rollout (advantages: of all ranks' samples); returns the metrics of the last.

        Token advantages are fixed for the whole rollout, from the entropies that were recorded while sampling (of plans
        whose padding is ranked, from a scoring pass): the entropy policy sees the whole batch at once (thresholds or a
        budget may span it), whatever the micro-batches.
        """
        if rollout.text is not None and ranks_padding(self.entropy_policy):
            sampled = whole_rollout(self.with_padding_scored(rollout), entropy_of_padding=torch.nan).sampled
        else:
            sampled = whole_rollout(rollout).sampled
        shaped, shares = self.entropy_policy(advantages, sampled.entropy, sampled.mask, sampled.is_image)
        token_advantages = own_tokens(shaped, rollout)
        metrics: dict[str, Any] = {}
        old_logps = None  # the first update is on-policy: its ratio is 1
        for _ in range(self.objective.updates_per_rollout):
            metrics, logps = self.backward_pass(rollout, token_advantages, ref_logps, old_logps)
            old_logps = logps if old_logps is None else old_logps
            scheduler: Any = self.lr_schedulers()
            metrics["lr"] = scheduler.get_last_lr()[0]
            with self.clock("optimizer"):
                metrics["grad_norm"] = self.apply_gradient()
        return dict(shares) | metrics

    def backward_pass(
        self, rollout: Rollout, token_advantages: Tensor, ref_logps: Tensor, old_logps: Tensor | None
    ) -> tuple[dict[str, Any], Tensor]:
        """Adds up the gradient of the objective over micro-batches; denominators are those of the batch of all ranks.

        The loss is a sum over tokens, so plans and images have backward passes of their own, where the engine can: the
        graph of the one is gone before that of the other is made.

        Returns:
            metrics, and the log-probabilities [N, T] that the gradient was taken at, detached.
        """
        assert self.policy is not None
        engine = self.engine
        denominator = token_denominator(rollout.sampled.mask, self.objective.token_mean)
        metrics: dict[str, Any] = {"loss": 0.0, "kl": 0.0, "clip_fraction": 0.0}
        logps = torch.zeros_like(ref_logps)
        settings: dict[str, Any] = {"temperature": self.rollout_settings.temperature, "entropy": False}
        segments: list[str | None] = [*rollout.segments] if engine.passes_by_segment else [None]
        passes = [(r, name) for r in self.micro_batches(rollout) for name in segments]
        columns: dict[Any, slice] = {**columns_of(rollout), None: slice(None)}
        with engine.accumulating():
            for number, (rows, name) in enumerate(passes, start=1):
                engine.next_pass(last=number == len(passes))
                with self.clock("scoring"):
                    scores = self.policy(rollout[rows], segment=name, **settings)
                at = (rows.unsqueeze(-1), torch.arange(logps.shape[1], device=rows.device)[columns[name]])
                loss, sums = self.loss(
                    scores,
                    ref_logps[at],
                    token_advantages[at],
                    None if old_logps is None else old_logps[at],
                    denominator[rows] if denominator.dim() else denominator,
                )
                with self.clock("backward"):
                    self.manual_backward(loss * engine.loss_scale)
                logps[at] = scores.logps.detach()
                for key, value in {"loss": loss.detach(), **sums}.items():
                    metrics[key] += value
        distributed.sum_in_place(list(metrics.values()))
        return metrics, logps

    def loss(
        self, scores: TokenScores, ref_logps: Tensor, advantages: Tensor, old_logps: Tensor | None, denominator: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of some rows and columns, as `policy_loss` gives it."""
        o = self.objective
        settings: dict[str, Any] = {"beta": o.beta, "clip_low": o.clip_low, "clip_high": o.clip_high}
        return policy_loss(
            scores.logps,
            ref_logps,
            advantages,
            scores.mask,
            old_logps=old_logps,
            denominator=denominator,
            **settings,
        )

    def apply_gradient(self) -> Tensor:
        """Clips, checks and applies the gradient; returns its norm before clipping."""
        step = self.global_step  # which some strategies count on even where they take none
        norm = self.engine.apply(self.objective.max_grad_norm)
        self.engine.weights_changed()
        if norm is not None and self.engine.lowered_scale:
            log.warning(
                "step %d: the gradient overflowed in float16, so no step was taken; the loss scale is halved", step
            )
            return norm
        if norm is None or not bool(norm.isfinite()):
            raise TrainingError(
                f"the gradient norm is {'inf or nan' if norm is None else norm.item()} at step {step}, and "
                "the step was not taken; look at train/kl and the rewards of the last steps, or go on from a "
                "checkpoint with a lower optimizer.lr"
            )
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return norm

    def report(self, metrics: dict[str, Any]) -> None:
        named = {name if name.startswith("perf/") else f"train/{name}": float(v) for name, v in metrics.items()}
        self.write(named, shown=("train/reward", "train/kl", "train/entropy_text", "train/entropy_image"))

    def write(self, metrics: dict[str, float], shown: Sequence[str] = ()) -> None:
        """One row in every logger, at once: Lightning would write it after the checkpoint of its step, or never if the
        run is killed in between. Callbacks see the metrics too."""
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name in shown, logger=False, batch_size=1)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self.validation.start()

    def validation_step(self, records: list[PromptRecord], batch_idx: int) -> None:
        assert self.policy is not None
        with self.clock("validation"), self.engine.drawing():
            self.validation.add(self.policy, records)

    def on_validation_epoch_end(self) -> None:
        self.validation.gather()
        self.write({f"val/{name}": value for name, value in self.validation.means().items()}, shown=["val/reward"])
        self.validation.finished_at = self.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what training changes; the rest comes from the model's own path."""
        trained = trained_names(self)
        weights = checkpoint.get("state_dict", {})
        checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in trained}
        checkpoint["rewards"] = self.rewards.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # engines that divide weights load them themselves
            check_fit(checkpoint["state_dict"], self)
            check_finite(checkpoint["state_dict"].items(), "the checkpoint")
        self.rewards.load_state_dict(checkpoint.get("rewards", {}))
