"""Drawing what is asked for, and the settings that decide what comes out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from egrpo.base.errors import UserError
from egrpo.generation.png import png_bytes, write_whole
from egrpo.generation.requests import Request
from egrpo.images import to_images
from egrpo.policies import model_hash
from egrpo.policy import JanusPolicy
from egrpo.policy.drawing import Drawing
from egrpo.policy.randomness import EVALUATION_STEP

DECODE_BATCH = 4  # images decoded at once, spare ones among them: as fast as more on a CPU, and few are spare


@dataclass(frozen=True)
class DrawSettings:
    """How images are drawn; two images of one prompt and index are equal where these and the model are.

    Args:
        seed: Of all samples.
        cot: A plan is written first.
        cfg_weight: Guidance of image tokens, 1 = none.
        temperature: Divides all logits.
        top_k: Draws from this many most likely tokens; None = all.
        top_p: Draws from the fewest tokens that hold this much probability; None = all.
        plan_top_k: Takes the place of `top_k` for plans; None = the same.

    Raises:
        UserError: a setting is of the wrong type, or out of range.
    """

    seed: int = 0
    cot: bool = True
    cfg_weight: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    plan_top_k: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise UserError(f"seed={self.seed}: give a whole number")
        if not isinstance(self.cot, bool):
            raise UserError(f"cot={self.cot}: give on or off (True or False in Python)")
        for name in ("cfg_weight", "temperature", "top_p"):
            value = getattr(self, name)
            if name == "top_p" and value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(f"{name}={value}: give a number")
            object.__setattr__(self, name, float(value))
        for name in ("top_k", "plan_top_k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UserError(f"{name}={value}: give a whole number from 1 on, or null for all tokens")
        Drawing(self.temperature, top_k=self.top_k, top_p=self.top_p, cfg_weight=self.cfg_weight)  # knows the ranges


def chosen(
    policy: JanusPolicy, seed: int, given: Mapping[str, Any], trained: Mapping[str, Any] | None = None
) -> DrawSettings:
    """What is given; else as the run was trained; else with a plan, guided as the model's generation config says.

    Args:
        policy: Whose generation config may hold `guidance_scale`, as Janus-Pro's does.
        seed: Of all samples.
        given: Fields of DrawSettings; None = not given.
        trained: The same of the run that the policy is from, if it is from one.
    """
    names = ("cot", "cfg_weight", "temperature", "top_k", "top_p", "plan_top_k")
    guidance = getattr(policy.model.generation_config, "guidance_scale", None)
    found: dict[str, Any] = {} if guidance is None else {"cfg_weight": guidance}
    for source in (trained or {}, given):
        found |= {name: source[name] for name in names if source.get(name) is not None}
    return DrawSettings(seed=seed, **found)


def identity(policy: JanusPolicy, settings: DrawSettings) -> dict[str, Any]:
    """All that decides what a prompt and an index become, as plain values that JSON keeps."""
    return {"model_hash": model_hash(policy), **circumstances(policy, settings)}


def request_stamp(weights: str | None, seed: int, *settings: Any) -> str | None:
    """A hash of a whole request for images but its prompts, from `egrpo.policies.weights_stamp`; None where that is."""
    told = json.dumps([weights, seed, *settings], sort_keys=True, default=str)
    return None if weights is None else hashlib.sha256(told.encode()).hexdigest()


def circumstances(policy: JanusPolicy, settings: DrawSettings) -> dict[str, Any]:
    """The same without the weights."""
    # What older folders know nothing of is told only where it changes what is drawn.
    cut = {} if settings.plan_top_k is None else {"plan_top_k": settings.plan_top_k}
    kept = {} if policy.strip_plans else {"strip_plans": False}
    return {
        **{name: value for name, value in asdict(settings).items() if name != "plan_top_k"},
        **cut,
        **kept,
        "templates": asdict(policy.templates),
        "max_plan_tokens": policy.max_plan_tokens,
        "max_prompt_tokens": policy.max_prompt_tokens,
        "num_image_tokens": policy.num_image_tokens,
        "padding": policy.padding,
    }


@dataclass(frozen=True)
class Picture:
    """An image with what it was made of.

    Args:
        image: RGB.
        prompt: As it was asked for.
        plan: The semantic CoT, "" without one.
        truncated: The plan hit the limit of its length.
        seed: Of the sampling.
        index: Of the sample among those of its prompt.
        about: What its PNG file tells beside these: model, versions.
    """

    image: Image.Image
    prompt: str
    plan: str
    truncated: bool
    seed: int
    index: int
    about: Mapping[str, str]

    def png(self) -> bytes:
        """The PNG file: the same bytes for the same image, with prompt, plan, seed, index, model and versions."""
        own = {"prompt": self.prompt, "plan": self.plan, "seed": str(self.seed), "index": str(self.index)}
        return png_bytes(self.image, {**own, **self.about})

    def save(self, path: str | Path) -> None:
        """Writes the PNG file, whole or not at all."""
        write_whole(Path(path), self.png())

    def show(self) -> None:
        """Opens the image in the system's viewer."""
        self.image.show(title=self.prompt)

    def _repr_png_(self) -> bytes:
        return self.png()  # what a notebook shows


def draw(
    policy: JanusPolicy, requests: Sequence[Request], settings: DrawSettings, about: Mapping[str, str]
) -> list[Picture]:
    """The images of some requests, drawn at once. Each is set by its prompt, index and the settings."""
    policy.decode_evenly, policy.decode_batch = True, min(policy.decode_batch, DECODE_BATCH)
    drawn = policy.rollout(
        [request.prompt for request in requests],
        1,
        sample_offset=[request.index for request in requests],
        seed=settings.seed,
        step=EVALUATION_STEP,
        cot=settings.cot,
        cfg_weight=settings.cfg_weight,
        temperature=settings.temperature,
        top_k=settings.top_k,
        plan_top_k=settings.plan_top_k,
        top_p=settings.top_p,
    )
    rows = zip(requests, to_images(drawn.pixels), drawn.plans, drawn.truncated.tolist(), strict=True)
    return [
        Picture(image, request.prompt, plan, cut, settings.seed, request.index, about)
        for request, image, plan, cut in rows
    ]
