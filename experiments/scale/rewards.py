"""The four published reward models with random weights: exact shapes and types, to measure what they cost.

    python -m experiments.scale.rewards target=DIR                       # 19.5 GB, made on the GPU where there is one
    python -m experiments.scale.rewards target=DIR device=cpu rewards=[hps,git]
    python -m experiments.scale.rewards device=meta                      # numbers of parameters; nothing is written

Leaves DIR/hps, git, gdino and orm, as `reward_models=DIR` loads them. The configurations are those that
`egrpo.conversion` gives the published checkpoints (GIT is published in transformers' own format). Tokenizers are those
of the shipped tiny models: their ids are rows of the larger embeddings.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import (
    CLIPModel,
    GitConfig,
    GitForCausalLM,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from egrpo.conversion import gdino, hps, orm
from egrpo.paths import resolve
from egrpo.rewards.pretrained import load_tokenizer

SHIPPED = "package:egrpo/shapes/assets/rewards"  # whose tokenizers do: random weights know no words
DEFAULTS = {
    "target": None,
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "seed": 0,
    "rewards": ["hps", "git", "gdino", "orm"],
}

# get_git_config("git-large-vqav2") of transformers' convert_git_to_pytorch.py: ViT-L/14 at 420 pixels.
GIT_VISION = {
    "image_size": 420,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
# config.json of lmms-lab/llava-onevision-qwen2-7b-ov, which the published judge was trained from.
LLAVA_QWEN = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "image_grid_pinpoints": [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)],
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


class ClipVocabulary:
    """What `hps.read_config` asks of CLIP's own tokenizer."""

    bos_token_id, eos_token_id = 49406, 49407

    def __len__(self) -> int:
        return 49408


def hps_config() -> Any:
    """CLIP ViT-H-14, as open_clip builds it."""
    with TemporaryDirectory() as empty:
        return hps.read_config(Path(empty) / "open_clip_config.json", cast(Any, ClipVocabulary()))


def git_config() -> GitConfig:
    """GIT-large, fine-tuned on VQAv2."""
    return GitConfig(vision_config=dict(GIT_VISION))


def gdino_config() -> Any:
    """GroundingDINO Swin-T OGC."""
    with TemporaryDirectory() as empty:
        return gdino.read_config(Path(empty))


def orm_config() -> LlavaOnevisionConfig:
    """LLaVA-OneVision 7B: Qwen2 7B behind SigLIP SO400M, as `egrpo.conversion.orm` describes it."""
    image = load_tokenizer(resolve(SHIPPED) / "orm").convert_tokens_to_ids(orm.IMAGE_TOKEN)
    with TemporaryDirectory() as empty:
        text, vision = orm.text_config(LLAVA_QWEN, Path(empty)), orm.vision_config(Path(empty))
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        video_token_index=image,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=LLAVA_QWEN["image_grid_pinpoints"],
        tie_word_embeddings=False,
    )


def clip_processor(config: Any) -> CLIPImageProcessorPil:
    side = config.vision_config.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def few_detections(model: nn.Module) -> None:
    """Lets few queries of a random detector exceed the usual threshold, in place.

    A phrase's logit is the product of a query's and a token's last layer norm. Untouched, it spreads so widely that
    half of all 900 queries count as detections of every phrase, which no trained detector does, and which costs seconds
    in the rules' suppression of duplicates. The norms' dimension 0 becomes a constant whose product is `LEVEL`, and the
    queries' other dimensions shrink to `SPREAD` of their size.
    """
    core = cast(Any, model).model
    query, text = core.decoder.layer_norm, core.encoder.layers[-1].text_enhancer_layer.layer_norm_after
    with torch.no_grad():
        query.weight.mul_(SPREAD)
        query.weight[0] = text.weight[0] = 0.0
        query.bias[0], text.bias[0] = LEVEL, 1.0


LEVEL, SPREAD = -6.0, 0.25


@dataclass(frozen=True)
class Kind:
    """A published reward model.

    dtype: Of the weights that are written, as the published run uses them. finish: What makes random weights behave.
    """

    model: Any
    config: Callable[[], Any]
    dtype: torch.dtype
    processor: Callable[[Any], Any]
    finish: Callable[[nn.Module], None] = lambda model: None


KINDS = {
    "hps": Kind(CLIPModel, hps_config, torch.bfloat16, clip_processor),
    "git": Kind(GitForCausalLM, git_config, torch.bfloat16, clip_processor),
    "gdino": Kind(
        GroundingDinoForObjectDetection,
        gdino_config,
        torch.float32,
        lambda _: GroundingDinoImageProcessorPil(),
        few_detections,
    ),
    "orm": Kind(
        LlavaOnevisionForConditionalGeneration,
        orm_config,
        torch.bfloat16,
        lambda config: orm.image_processor(config.vision_config.image_size),
    ),
}


def build(kind: Kind, device: torch.device | str, config: Any = None) -> nn.Module:
    """The model on `device` with transformers' own random weights, made there and in their final type.

    Args:
        config: Another configuration than the published one.
    """
    with torch.device(device):
        model = kind.model._from_config(kind.config() if config is None else config, dtype=kind.dtype)
    if torch.device(device).type != "meta":
        kind.finish(model)
    return model.eval().requires_grad_(False)


def save(name: str, model: nn.Module, folder: Path) -> int:
    """Writes what the reward `name` loads; returns the bytes of the weights."""
    shutil.rmtree(folder, ignore_errors=True)
    cast(Any, model).save_pretrained(folder, max_shard_size="100GB")
    KINDS[name].processor(model.config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve(SHIPPED) / name / file, folder / file)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def make_rewards(
    target: Path, device: torch.device | str = DEFAULTS["device"], seed: int = 0, rewards: Sequence[str] = tuple(KINDS)
) -> dict[str, dict[str, float]]:
    """Leaves `target/NAME` for each of `rewards`; what is there is made anew.

    Returns:
        By name: parameters, bytes of the weights, seconds_made, seconds_written.
    """
    made: dict[str, dict[str, float]] = {}
    for name in rewards:
        torch.manual_seed(seed)
        start = time.perf_counter()
        model = build(KINDS[name], device)
        between = time.perf_counter()
        size = save(name, model, target / name)
        made[name] = {
            "parameters": count(model),
            "bytes": size,
            "seconds_made": between - start,
            "seconds_written": time.perf_counter() - between,
        }
        del model
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
    return made


def count(model: nn.Module) -> int:
    """Parameters, those that are shared once."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Makes them and says what was made."""
    settings: Any = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(sys.argv[1:]))
    unknown = set(settings) - set(DEFAULTS) | set(settings.rewards) - set(KINDS)
    if unknown or (settings.target is None) != (settings.device == "meta"):
        sys.exit(f"{', '.join(sorted(unknown)) or 'target=DIR or device=meta is missing'}: {__doc__}")
    for name in settings.rewards:
        if settings.device == "meta":
            print(f"{name:6}{count(build(KINDS[name], 'meta')):>15,} parameters", flush=True)
            continue
        made = make_rewards(Path(settings.target), settings.device, settings.seed, [name])[name]
        print(
            f"{name:6}{made['parameters']:>15,} parameters, {made['bytes'] / 1e9:.2f} GB, made in "
            f"{made['seconds_made']:.1f} s, written in {made['seconds_written']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
