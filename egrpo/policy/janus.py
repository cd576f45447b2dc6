"""The policy: a native Janus model with the templates, the sampler and the scorer around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egrpo.base.errors import UserError
from egrpo.policy.backbone import Backbone, evaluating
from egrpo.policy.capture import Steps
from egrpo.policy.drawing import Drawing
from egrpo.policy.layout import check_padding
from egrpo.policy.loading import begin_of_image_token, freeze_all_but, load_janus, merged_state_dict
from egrpo.policy.lockstep import ALONE, Lockstep
from egrpo.policy.prompting import encode_filled, fit_prompt
from egrpo.policy.randomness import SampleKey, sample_keys
from egrpo.policy.rollout import Sampler, chunks, one_in
from egrpo.policy.rollout_copy import RolloutCopy
from egrpo.policy.sampling import grid_size, pad_token
from egrpo.policy.scoring import score_rollout
from egrpo.policy.templates import Templates
from egrpo.precision import keep_buffer_types
from egrpo.tensor_files import check_finite
from egrpo.types import PromptRecord, Rollout, Segment, TokenScores

CPU_PIXELS = 2**16  # decoded at once on a CPU: what leaves its cache costs more than a call


class JanusPolicy(nn.Module):
    """Samples plans and images from a Janus model, and scores them.

    Args:
        model: Native `JanusForConditionalGeneration`.
        processor_or_tokenizer: `JanusProcessor` or its tokenizer; `export` saves what is given here.
        templates: Templates, or a mapping of their fields.
        max_plan_tokens: Most tokens of a plan; one that is cut there is marked in `Rollout.truncated`.
        max_prompt_tokens: Most tokens of a reasoning prompt, template included; longer prompts are cut. None = any.
        chunk_size: Positions whose logits are held at once while scoring.
        padding: "exact" or "published", see `egrpo.policy.sample_image_tokens`.
        strip_plans: Whether plans lose white space at their ends before they enter the image prompt (published: False).
        trainable: Modules left trainable, all others are frozen (T2I-R1 and EG-GRPO: language model and text head).
        num_image_tokens: Codes of an image, a square number; None = the grid of the VQ decoder.
        decode_batch: Images that the VQ decoder takes at once.
        decoding: How tokens are fed while sampling, see `egrpo.policy.capture.Steps`.
        gradient_checkpointing: Recomputes the language model's layers in the backward pass, in training mode.

    Raises:
        UserError: No begin-of-image token or pad token is known, or an argument is out of range.
    """

    def __init__(
        self,
        model: Any,
        processor_or_tokenizer: Any,
        templates: Templates | Mapping[str, Any],
        *,
        max_plan_tokens: int,
        max_prompt_tokens: int | None = None,
        chunk_size: int = 512,
        padding: str = "exact",
        strip_plans: bool = True,
        trainable: Sequence[str] = ("language_model", "lm_head"),
        num_image_tokens: int | None = None,
        decode_batch: int = 16,
        decoding: str = "auto",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.load_again: Callable[[], Any] | None = None  # gives the model as it was, for a reference
        check_padding(padding)
        if max_plan_tokens < 1:
            raise UserError(f"max_plan_tokens must be at least 1, not {max_plan_tokens}")
        self.model = model
        self.processor = processor_or_tokenizer
        self.tokenizer = getattr(processor_or_tokenizer, "tokenizer", processor_or_tokenizer)
        self.templates = templates if isinstance(templates, Templates) else Templates(**templates)
        self.max_plan_tokens, self.max_prompt_tokens = max_plan_tokens, max_prompt_tokens
        self.chunk_size = chunk_size
        self.padding, self.strip_plans = padding, strip_plans
        self.num_image_tokens = num_image_tokens or grid_size(model.config)
        side = math.isqrt(self.num_image_tokens)
        if side**2 != self.num_image_tokens:
            raise UserError(f"num_image_tokens must be a square number, not {num_image_tokens}")
        # The decoder is convolutional: it takes any grid, once told its sides.
        model.model.vqmodel.quantize.quant_state_dims = [side, side]
        self.decode_batch = decode_batch
        self.decode_evenly = False  # no pixel depends on how many images are decoded with it, at the cost of spare ones
        self.steps = Steps(decoding)
        self.lockstep: Lockstep = ALONE  # in scoring, with ranks that hold other parts of the weights
        self.drawing: Lockstep = ALONE  # the same in sampling, unless this rank has the whole weights for it
        self.rollout_copy: RolloutCopy | None = None  # what is sampled from, where the weights are divided
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else pad_token(model)
        self.begin_of_image = begin_of_image_token(model, self.tokenizer)
        freeze_all_but(model, trainable)
        keep_buffer_types(model)
        if gradient_checkpointing:
            model.model.language_model.activation_checkpointing_enable({"use_reentrant": False})

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        templates: Templates | Mapping[str, Any],
        *,
        dtype: str = "float32",
        attn_implementation: str = "sdpa",
        adapter: Callable[[JanusPolicy], Any] | None = None,
        **settings: Any,
    ) -> JanusPolicy:
        """Loads a checkpoint (see `load_janus` for errors); `adapter`, e.g. a partial of `add_lora`, is put on last.

        `settings` are those of the constructor.
        """
        model, processor = load_janus(path, dtype, attn_implementation)
        policy = cls(model, processor, templates, **settings)
        policy.load_again = lambda: load_janus(path, dtype, attn_implementation)[0]
        if adapter is not None:
            adapter(policy)
        return policy

    @property
    def backbone(self) -> Backbone:
        """The modules that sampling and scoring touch, by reference."""
        return Backbone.of(self.model)

    @property
    def rollout_model(self) -> Any:
        """The model that rollouts run: the policy's own, or the whole copy of one that is divided among ranks."""
        return self.model if self.rollout_copy is None else self.rollout_copy.model

    @property
    def device(self) -> torch.device:
        """Where the language model is that rollouts run."""
        return next(self.rollout_model.model.language_model.parameters()).device

    @torch.no_grad()
    def rollout(
        self,
        records: Sequence[PromptRecord | str],
        group_size: int,
        *,
        seed: int,
        step: int,
        cot: bool,
        cfg_weight: float,
        temperature: float = 1.0,
        greedy: bool = False,
        guided_logps: bool = False,
        sample_offset: int | Sequence[int] = 0,
        chunk: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        plan_top_k: int | None = None,
        padded_together: int | None = None,
        images_per_plan: int = 1,
    ) -> Rollout:
        """Samples `group_size` images a prompt, with a plan each if `cot`, in group order.

        A sample is set by (seed, step, prompt, sample index): equal prompts in one call get equal samples.

        Args:
            records: B prompts.
            group_size: Samples a prompt, G.
            seed: Seed of the run.
            step: Training step, or any other number of the draw.
            cot: True = a plan is written first and is part of the image prompt.
            cfg_weight: Guidance of the image tokens, 1 = none.
            temperature: Divides all logits.
            greedy: Takes the most likely tokens.
            guided_logps: Records and later scores image tokens by the guided distribution that they are drawn from;
                False = by the conditional one, as published.
            sample_offset: Index of the first sample of a group, for drawing a group in several calls; or B of them.
            chunk: Most sequences sampled at once, None = all; the result does not depend on it.
            top_k: Draws from this many most likely tokens, of plan and image; None = all.
            top_p: Draws from the fewest tokens that hold this much probability; None = all.
            plan_top_k: Takes the place of `top_k` for plans; None = the same. The released code draws plans with 50.
            padded_together: In published padding, how many consecutive samples are padded to the longest image prompt
                among them; None = all. The released code pads the samples of one prompt. At most so many are drawn at
                once.
            images_per_plan: Samples that share a plan, M: a group has G / M plans, and sample i has plan i // M, drawn
                as sample i // M draws its own where M is 1. Without CoT it means nothing.

        Returns:
            Rollout of N = B x G samples, on the model's device; its tensors may be used under autograd.

        Raises:
            UserError: there is nothing to draw, or a group (or an offset) is not a whole number of plans.
        """
        texts = [record if isinstance(record, str) else record.prompt for record in records]
        offsets = [sample_offset] * len(texts) if isinstance(sample_offset, int) else sample_offset
        keys = sample_keys(texts, group_size, seed, step, offsets)
        shared = one_in(images_per_plan, group_size, offsets) if cot else 1
        how = Drawing(temperature, greedy, top_k, top_p, cfg_weight, guided_logps)
        plan_how = replace(how, cfg_weight=1.0, top_k=top_k if plan_top_k is None else plan_top_k)
        with evaluating(self.rollout_model):
            return self._draw(keys, cot, shared, how, plan_how, chunk, padded_together)

    def _draw(
        self,
        keys: list[SampleKey],
        cot: bool,
        shared: int,
        how: Drawing,
        plan_how: Drawing,
        chunk: int | None,
        together: int | None,
    ) -> Rollout:
        """The samples of N keys: plans if `cot`, one for `shared` rows that follow each other, then images."""
        prompts = [prompt for _, _, prompt, _ in keys]
        text, truncated = None, torch.zeros(len(keys), dtype=torch.bool, device=self.device)
        plans: list[str] | list[None] = [None] * len(keys)
        if cot:
            text, truncated = self._draw_plans(prompts, keys, shared, plan_how, chunk)
            plans = self._decode_plans(text)
        contexts = [self.image_ids(prompt, plan) for prompt, plan in zip(prompts, plans, strict=True)]
        together = together if self.padding == "published" else None
        sampler = self._sampler(None if how.greedy else keys, chunks(len(keys), chunk), together)
        image = sampler.image(contexts, self.begin_of_image, self.num_image_tokens, how)
        pixels = self.decode(image.tokens)
        guidance = how.cfg_weight if how.record_guided else 1.0
        return Rollout(prompts, [plan or "" for plan in plans], truncated, text, image, pixels, guidance)

    def _draw_plans(
        self, prompts: list[str], keys: list[SampleKey], shared: int, how: Drawing, chunk: int | None
    ) -> tuple[Segment, Tensor]:
        """Plans of N prompts, and which were cut, [N] bool; `shared` rows that follow each other have one plan."""
        own = [(*key[:3], key[3] // shared) for key in keys[::shared]]
        sampler = self._sampler(None if how.greedy else own, chunks(len(own), chunk))
        reasoning = [self.reasoning_ids(prompt) for prompt in prompts[::shared]]
        text, truncated = sampler.text(reasoning, self.max_plan_tokens, self.tokenizer.eos_token_id, how)
        rows = torch.arange(len(prompts), device=self.device) // shared
        return text[rows], truncated[rows]

    def score(
        self,
        rollout: Rollout,
        *,
        temperature: float = 1.0,
        entropy: bool = True,
        segment: str | None = None,
        at_padding: bool = False,
    ) -> TokenScores:
        """Teacher-forced scores of a rollout or of any rows of it, with gradient where it is enabled.

        Equals what was recorded while sampling, in the rollout's own `temperature`; image logits are conditional, or
        guided where `rollout.guidance` is not 1.

        Returns:
            TokenScores, text columns first, or of one `segment` ("text", "image"); 0 where mask is False. Without
            `entropy` its entropy is [N, 0]. With `at_padding` plans have scores after their end, too, up to the longest
            plan of these rows, and entropy NaN after it (see `egrpo.policy.scoring.score_text_columns`).
        """
        own: dict[str, Any] = {"temperature": temperature, "entropy": entropy, "segment": segment}
        return score_rollout(self.backbone, rollout, at_padding=at_padding, **own, **self.scoring)

    @property
    def scoring(self) -> dict[str, Any]:
        """Settings of `score_rollout` that a reference shares."""
        return {
            **{"chunk_size": self.chunk_size, "padding": self.padding, "pad": self.pad},
            "lockstep": self.lockstep,
        }

    forward = score

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Image codes [N, T] -> pixels [N, H, W, 3] uint8."""
        pixels = codes.shape[1] * 4 ** (len(self.model.config.vq_config.channel_multiplier) - 1)  # of an image
        most = max(1, CPU_PIXELS // pixels) if codes.device.type == "cpu" else self.decode_batch
        count, size = len(codes), min(most, self.decode_batch)
        if self.decode_evenly and count % size:
            codes = torch.cat([codes, codes[-1:].expand(size - count % size, -1)])
        parts = [self.rollout_model.decode_image_tokens(part) for part in codes.split(size)]
        return torch.cat([((part.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8) for part in parts])[:count]

    def export(self, directory: str | Path) -> None:
        """Saves model (adapter merged) and tokenizer; plain `JanusForConditionalGeneration` loads the folder.

        Raises:
            CheckpointError: a weight is NaN or infinite.
        """
        merged = merged_state_dict(self.model)
        check_finite(merged.items(), "the model to export")
        self.model.save_pretrained(directory, state_dict=merged)
        self.processor.save_pretrained(directory)

    def train(self, mode: bool = True) -> JanusPolicy:
        """Training mode where there is something to train; the other parts stay in evaluation mode."""
        super().train(mode)
        for part in (*self.model.model.children(), self.model.lm_head):
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def reasoning_ids(self, prompt: str) -> list[int]:
        """Text ids after which a plan is written, begin-of-sequence first."""
        return encode_filled(self.tokenizer, self.templates.reasoning_text, self._fitted(prompt))

    def image_ids(self, prompt: str, plan: str | None = None) -> list[int]:
        """Text ids of an image prompt, begin-of-sequence first, without begin-of-image."""
        return encode_filled(self.tokenizer, self.templates.image_text, self._fitted(prompt), plan)

    def _fitted(self, prompt: str) -> str:
        return fit_prompt(self.tokenizer, self.templates, prompt, self.max_prompt_tokens)

    def _sampler(self, keys: list[SampleKey] | None, rows: list[slice], together: int | None = None) -> Sampler:
        # Hooks that gather weights at every layer cannot be captured.
        steps = self.steps if self.drawing is ALONE else Steps("eager")
        backbone = Backbone.of(self.rollout_model)
        return Sampler(backbone, steps, self.drawing, keys, rows, together, self.pad, self.padding, self.device)

    def _decode_plans(self, text: Segment) -> list[str]:
        rows = [tokens[mask].tolist() for tokens, mask in zip(text.tokens.cpu(), text.mask.cpu(), strict=True)]
        plans = [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
        return [plan.strip() for plan in plans] if self.strip_plans else plans
