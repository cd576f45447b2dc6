"""The pack `conformance/published_step`: one whole step of each released trainer, and a module that takes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from egrpo.algorithm import group_advantages
from egrpo.conversion import janus
from egrpo.policy.layout import image_context, pad_rows
from egrpo.rewards import RewardEnsemble, WeightedReward
from egrpo.training import GRPOModule
from egrpo.types import RewardTable, Rollout, Segment
from tests.shared_data import shared_path

PACK, CHECKPOINT = ("conformance", "published_step"), ("conformance", "janus_original_tiny")
# The released trainers by the pack's names: what makes them here.
TRAINERS = {
    "eg_grpo": ["+experiment=eg_grpo_janus_pro_7b"],
    "compute_efficient": ["+experiment=eg_grpo_janus_pro_7b", "entropy_policy.threshold=quantile"],
    "text_only": ["+experiment=eg_grpo_janus_pro_7b_text_only"],
    "image_only": ["+experiment=eg_grpo_janus_pro_7b_image_only"],
    "t2i_r1": ["+experiment=t2i_r1_janus_pro_7b"],
}
SYSTEM = "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt."
# The hardware's part of the experiments, for one process on a CPU, and rewards that need no models.
ON_A_CPU = ["strategy=auto", "trainer.devices=1", "model.dtype=float32", "reward=[shapes_oracle]"]


@dataclass(frozen=True)
class Case:
    """One case: its texts and counts, its arrays without the case's name, the trained tensors."""

    told: dict[str, Any]
    arrays: dict[str, Tensor]
    trained: dict[str, Tensor] = field(repr=False)

    @property
    def text_columns(self) -> int:
        return int(self.told["text_columns"])

    @property
    def mask(self) -> Tensor:
        return self.arrays["completion_mask"].bool()

    def of(self, trainer: str) -> dict[str, Tensor]:
        """Arrays of one trainer."""
        start = f"{trainer}."
        return {name[len(start) :]: value for name, value in self.arrays.items() if name.startswith(start)}


def cases() -> list[Case]:
    """All cases of the pack."""
    folder = shared_path(*PACK)
    told = json.loads((folder / "cases.json").read_text())
    arrays, trained = load_file(folder / "data.safetensors"), load_file(folder / "policy.safetensors")
    out = []
    for one in told:
        start = f"case{one['case']}."
        own = {name[len(start) :]: value for name, value in arrays.items() if name.startswith(start)}
        moved = one["policy_embed_tokens_from"] == "policy.safetensors"
        kept = {name: value for name, value in trained.items() if moved or "embed_tokens" not in name}
        out.append(Case(one, own, kept))
    return out


def converted(target: Path) -> Path:
    """The pack's checkpoint with its tokenizer, in the native format."""
    source = target / "original"
    source.mkdir()
    for file in [*shared_path(*CHECKPOINT).iterdir(), *shared_path(*PACK).iterdir()]:
        if file.suffix != ".md" and file.name not in ("data.safetensors", "policy.safetensors", "cases.json"):
            shutil.copyfile(file, source / file.name)
    janus.convert(source, target / "native")
    return target / "native"


def native_name(name: str) -> str:
    """The pack's name of a tensor -> the name in the native model."""
    return name.replace("language_model.lm_head.", "lm_head.").replace("language_model.model.", "model.language_model.")


def segment(case: Case, name: str) -> Segment:
    """Plans ("text") or images with their contexts, nothing recorded."""
    arrays = case.arrays
    tokens = arrays["text.completion_ids" if name == "text" else "image.token_ids"]
    mask = arrays["text.completion_mask"].bool() if name == "text" else torch.ones_like(tokens, dtype=torch.bool)
    blank = torch.zeros(tokens.shape)
    return Segment(arrays[f"{name}.prompt_ids"], arrays[f"{name}.prompt_mask"].bool(), tokens, mask, blank, blank)


class Step:
    """A trainer's module, and what its update of a case computes.

    The optimizer's learning rate is 0: the weights are those of the case as long as it lasts.
    """

    def __init__(self, module: GRPOModule) -> None:
        self.module = module
        self.policy: Any = module.policy
        self.checkpoint = {name: value.clone() for name, value in self.policy.model.state_dict().items()}
        trained = [p for p in module.policy.parameters() if p.requires_grad]  # type: ignore[union-attr]
        optimizer: Any = torch.optim.SGD(trained, lr=0.0)
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
        module.optimizers = lambda: optimizer  # type: ignore[method-assign]
        module.lr_schedulers = lambda: torch.optim.lr_scheduler.ConstantLR(optimizer)  # type: ignore[method-assign]
        self.seen: dict[str, Any] = {}
        self._spy("backward_pass", lambda rollout, shaped, *rest: {"token_advantages": shaped})
        self._spy("apply_gradient", lambda: {"gradients": self._gradients()})

    def _spy(self, name: str, look: Callable[..., dict[str, Any]]) -> None:
        own = getattr(self.module, name)

        def spied(*given: Any) -> Any:
            self.seen |= look(*given)
            return own(*given)

        setattr(self.module, name, spied)

    def _gradients(self) -> dict[str, Tensor]:
        named = self.policy.model.named_parameters()
        return {name: p.grad.detach().clone() for name, p in named if p.grad is not None}

    @torch.no_grad()
    def load(self, case: Case) -> None:
        """Gives the policy the weights and the reasoning template of a case."""
        own = {native_name(name): value for name, value in case.trained.items()}
        kind = self.checkpoint["lm_head.weight"].dtype
        self.policy.model.load_state_dict({**self.checkpoint, **{n: v.to(kind) for n, v in own.items()}})
        self.policy.templates = replace(
            self.policy.templates,
            system=SYSTEM,
            reasoning=case.told["reasoning_template"],
        )

    def contexts(self, case: Case) -> tuple[list[str], dict[str, tuple[Tensor, Tensor]]]:
        """Plans as text, and the ids and masks before plans and images, all made from the case's texts and plan ids."""
        policy, told = self.policy, case.told
        prompts = [prompt for prompt in told["raw_prompts"] for _ in range(told["num_generations"])]
        plans = policy._decode_plans(segment(case, "text"))
        ids = [policy.image_ids(prompt, plan) for prompt, plan in zip(prompts, plans, strict=True)]
        return plans, {
            "text": pad_rows([policy.reasoning_ids(prompt) for prompt in prompts], policy.pad, left=True),
            "image": image_context(ids, policy.pad, policy.begin_of_image, policy.padding),
        }

    def rollout(self, case: Case) -> Rollout:
        """The case's tokens after its own contexts, with what drawing them would have recorded."""
        text, image = segment(case, "text"), segment(case, "image")
        texts = [""] * len(text.mask)
        pixels = torch.zeros(len(texts), 1, 1, 3, dtype=torch.uint8)
        rollout = Rollout(texts, texts, ~text.mask.all(dim=1), text, image, pixels)
        with torch.no_grad():
            recorded = self.policy.score(rollout)  # equal to what drawing records, 0 at padding
        width = case.text_columns
        logps, entropy = recorded.logps, recorded.entropy
        return replace(
            rollout,
            text=replace(text, logps=logps[:, :width], entropy=entropy[:, :width]),
            image=replace(image, logps=logps[:, width:], entropy=entropy[:, width:]),
        )

    def advantages(self, case: Case) -> Tensor:
        """[N], from the four columns of rewards."""
        values = case.arrays["rewards_by_function"]
        all_of_it = torch.ones_like(values, dtype=torch.bool)
        table = RewardTable(["hps", "git", "gdino", "orm"], values, torch.ones(4), all_of_it, all_of_it)
        size = case.told["num_generations"]
        columns = RewardEnsemble({name: WeightedReward(given_scores) for name in table.names})
        return group_advantages(columns.mix(table, size), size)

    def update(self, case: Case) -> dict[str, Any]:
        """What `GRPOModule.update` returns, and "token_advantages", "gradients" by native name, "ref_logps"."""
        self.load(case)
        return self.update_on(self.rollout(case), self.advantages(case))

    def update_on(self, rollout: Rollout, advantages: Tensor) -> dict[str, Any]:
        """The same of any rollout, at the weights that are there."""
        reference = self.module.reference_logps(rollout)
        metrics = self.module.update(rollout, advantages, reference)
        self.policy.zero_grad()
        return {**metrics, **self.seen, "ref_logps": reference}


def given_scores(images: Any, records: Any) -> torch.Tensor:
    """In the place of the four reward models, whose scores the pack holds."""
    raise AssertionError("the pack holds the scores")
