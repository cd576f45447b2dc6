"""One training step of each side: the published procedure, and egrpo's own training step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from egrpo.images import to_images
from egrpo.policy import FrozenReference, JanusPolicy, sample_uniforms
from egrpo.train import build_module
from egrpo.training import GRPOModule
from egrpo.types import PromptRecord
from experiments.speed import published
from experiments.speed.meter import Meter, split_rollout
from experiments.speed.subject import Subject


class Alone(GRPOModule):
    """The product's training step without Lightning's Trainer around it; nothing of the step itself is replaced."""

    held: tuple[torch.optim.Optimizer, Any]
    reported: dict[str, float]

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self.held[0]

    def lr_schedulers(self) -> Any:
        return self.held[1]

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def report(self, metrics: dict[str, Any]) -> None:
        self.reported = {name: float(value) for name, value in metrics.items()}


class Side:
    """What the two have in common: every step starts from the same weights and from fresh states of AdamW."""

    name: str

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.trained = [p for p in subject.policy.parameters() if p.requires_grad]
        flags = dict(subject.policy.named_parameters())
        frozen = dict(subject.frozen.named_parameters(prefix="model"))
        self.untouched = [frozen[name] for name, p in flags.items() if p.requires_grad]

    @property
    def steps_records(self) -> list[PromptRecord]:
        return self.subject.records[: self.subject.settings.prompts]

    def run(self, meter: Meter) -> float:
        """Seconds of one whole step; what prepares it and what follows is not timed."""
        self.prepare()
        start = meter.now()
        self.step(meter)
        seconds = meter.now() - start
        self.clear()
        return seconds

    def prepare(self) -> None:
        gc.collect()
        with torch.no_grad():
            for p, first in zip(self.trained, self.untouched, strict=True):
                p.copy_(first)
        self.subject.policy.train()
        optimizer = self.optimizer()
        for p in self.trained:
            p.grad = torch.zeros_like(p)
        optimizer.step()  # its first step makes its states: no training step but the first pays for that
        optimizer.zero_grad()

    def clear(self) -> None:
        """Leaves nothing behind that the other side's memory would be measured beside."""
        for p in self.trained:
            p.grad = None

    def optimizer(self) -> torch.optim.Optimizer:
        raise NotImplementedError

    def step(self, meter: Meter) -> None:
        raise NotImplementedError


class Ours(Side):
    """`GRPOModule.training_step` as `python -m egrpo.train` runs it."""

    name = "ours"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        cfg = subject.cfg.copy()
        cfg.module._target_ = f"{Alone.__module__}.{Alone.__name__}"
        module: Any = build_module(cfg)
        module.make_policy = lambda: subject.policy
        module.make_reference = lambda policy: FrozenReference(policy, model=subject.frozen)
        module.configure_model()
        self.module: Alone = module.to(subject.device)

    def optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.module.make_optimizer(self.trained)
        self.module.held = (optimizer, self.module.make_scheduler(optimizer))
        return optimizer

    def step(self, meter: Meter) -> None:
        self.module.clock = meter
        language = self.subject.policy.model.model.language_model
        if str(self.subject.settings.checkpointing).lower() != "false":
            language.activation_checkpointing_enable({"use_reentrant": False})
        with split_rollout(self.subject.policy, meter):
            self.module.training_step(self.steps_records, 0)
        self.plan_tokens = int(self.module.last_rollout[1].text.mask.sum())  # type: ignore[index, union-attr]

    def clear(self) -> None:
        super().clear()
        self.module.last_rollout = None
        del self.module.held


class Published(Side):
    """The published procedure on the same modules, rewards and settings."""

    name = "published"

    def __init__(self, subject: Subject, rewards: dict[str, Any]) -> None:
        super().__init__(subject)
        self.rewards = rewards
        self.cfg = subject.cfg
        self.keys = [
            (int(self.cfg.seed), 0, record.prompt, i)
            for record in self.steps_records
            for i in range(self.cfg.rollout.group_size)
        ]
        # Prepared once: multinomial, which the published code calls, has its numbers within its own time.
        self.uniforms = {
            "text": self._uniforms(subject.policy.max_plan_tokens, "text"),
            "image": self._uniforms(subject.policy.num_image_tokens, "image"),
        }

    def _uniforms(self, count: int, domain: str) -> Tensor:
        return sample_uniforms(self.keys, count, domain=domain).to(self.subject.device)

    def optimizer(self) -> torch.optim.Optimizer:
        o = self.cfg.optimizer
        self.adamw = torch.optim.AdamW(
            self.trained, lr=o.lr, betas=tuple(o.betas), weight_decay=o.weight_decay, foreach=False, fused=False
        )
        return self.adamw

    def clear(self) -> None:
        super().clear()
        del self.adamw

    def step(self, meter: Meter) -> None:
        subject, cfg = self.subject, self.cfg
        if str(subject.settings.checkpointing).lower() == "ours":
            subject.policy.model.model.language_model.activation_checkpointing_disable()
        group = int(cfg.rollout.group_size)
        records = [record for record in self.steps_records for _ in range(group)]
        temperature = float(cfg.rollout.temperature)
        subject.policy.eval()
        text, image = rollout(subject.policy, records, self.uniforms, cfg.rollout.cfg_weight, temperature, meter)
        with meter("decode"):
            pixels = published.decode(subject.policy.model, image.tokens)
        subject.policy.train()
        self.plan_tokens = int(text.mask.sum())
        with meter("rewards"):
            pictures = to_images(pixels)
            rewards = sum(one_by_one(r.reward, pictures, records) * r.weight for r in self.rewards.values())
        grouped = rewards.view(-1, group)  # type: ignore[union-attr]
        advantages = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
        self.update(text, image, advantages.flatten(), temperature, meter)

    def update(self, text: Any, image: Any, advantages: Tensor, temperature: float, meter: Meter) -> None:
        """Reference, scores, loss, backward pass and AdamW, all samples at once."""
        subject, objective = self.subject, self.cfg.objective
        with meter("reference"), torch.no_grad():
            reference, _ = scores(subject.frozen, text, image, temperature)  # its entropies are thrown away
        with meter("scoring"):
            logps, entropy = scores(subject.policy.model, text, image, temperature)
        mask = torch.cat([text.mask, image.mask], dim=1)
        shaped = published.token_advantages(advantages, entropy, mask, text.tokens.shape[1]).to(logps.device)
        loss = published.loss(logps, reference, shaped, mask, objective.beta, mask.sum())
        with meter("backward"):
            loss.backward()
        del loss, logps, reference
        with meter("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.trained, objective.max_grad_norm, foreach=False)
            self.adamw.step()
            self.adamw.zero_grad()


def rollout(
    policy: JanusPolicy,
    records: list[PromptRecord],
    uniforms: dict[str, Tensor] | None,
    cfg_weight: float,
    temperature: float,
    meter: Meter,
) -> tuple[published.Drawn, published.Drawn]:
    """Plans and image codes of the published loops, a row a record; uniforms None = greedy."""
    numbers: dict[str, Any] = uniforms or {"text": None, "image": None}
    model, pad, device = policy.model, policy.pad, policy.device
    with meter("text"):
        contexts = [policy.reasoning_ids(record.prompt) for record in records]
        text = published.write_plans(
            model,
            *published.padded(contexts, pad, device, left=True),
            numbers["text"],
            max_tokens=policy.max_plan_tokens,
            eos=policy.tokenizer.eos_token_id,
            temperature=temperature,
        )
    with meter("image"):
        rows = [tokens[mask].tolist() for tokens, mask in zip(text.tokens, text.mask)]
        plans = [policy.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        prompts = [policy.image_ids(record.prompt, plan) for record, plan in zip(records, plans, strict=True)]
        ids, mask = published.padded(prompts, pad, device, left=False)
        last = torch.full((len(ids), 1), policy.begin_of_image, device=device)
        image = published.draw_images(
            model,
            torch.cat([ids, last], dim=1),
            torch.cat([mask, torch.ones_like(last, dtype=torch.bool)], dim=1),
            numbers["image"],
            num_tokens=policy.num_image_tokens,
            pad=pad,
            cfg_weight=cfg_weight,
            temperature=temperature,
        )
    return text, image


def scores(model: Any, text: Any, image: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N, T], text columns first."""
    parts = zip(published.score_text(model, text, temperature), published.score_image(model, image, temperature))
    logps, entropy = (torch.cat(pair, dim=1) for pair in parts)
    return logps, entropy


def one_by_one(reward: Callable[..., Any], images: list[Any], records: list[PromptRecord]) -> Tensor:
    """[N], one call an image."""
    return torch.cat([torch.as_tensor(reward([i], [r])) for i, r in zip(images, records, strict=True)])
