"""What both sides work on: one model, one frozen copy, prompts and rewards."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from egrpo.data import read_prompts
from egrpo.paths import config_dir, resolve
from egrpo.policy import JanusPolicy, load_janus
from egrpo.types import PromptRecord
from experiments.speed.meter import CLOCKS

SIZES = Path(__file__).parent / "sizes"
SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>")
CHECKPOINTING = ("true", "false", "ours")
DEFAULTS: dict[str, Any] = {
    "shape": "shapes",  # a file of sizes/
    "dry_run": False,
    "repeats": 5,  # timed runs of each side
    "memory": True,
    "clock": "wall",  # or cpu: processor seconds, for a CPU that is busy with other work
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "checkpointing": False,  # gradient checkpointing: of both sides (as published), of neither, or of ours alone
    "padding": "published",  # of both sides: then their tokens are comparable in batches of unequal prompts
    "cfg_weight": 5.0,
    "prompts": 1,  # a step
    "group_size": 8,
    "micro_batch_size": None,  # sequences that ours scores at once; null = all, as the published procedure always does
    "plan_tokens": 64,  # at most
    "image_tokens": None,  # a square number; null = the model's own
    "prompt_file": "package:egrpo/shapes/assets/prompts/validation.jsonl",
    "rewards": ["hps", "git", "gdino_strict", "orm"],
    "reward_models": "package:egrpo/shapes/assets/rewards",
    "reward_dtype": "float32",
    "entropy_tolerance": 1e-5,  # between the two sides, in float32
    "seed": 0,
    "folder": "outputs/speed",
    "overrides": [],  # more of python -m egrpo.train, for ours
    "model": "???",  # a file of conf/model: templates and chunk sizes
    "checkpoint": None,  # a folder; null = random weights of this architecture:
    "architecture": None,  # a JanusConfig, or the name of a file of conf/architecture
    "growth": False,  # also how both sides grow: python -m experiments.speed.growth
    "growth_repeats": 3,
    "growth_groups": [2, 4, 8, 16],
    "growth_tokens": [64, 144, 256, 400, 576],
    "growth_vocabularies": [16384, 32768, 102400],
}


@dataclass(frozen=True)
class Subject:
    """One model in two copies, and what is done with it."""

    settings: Any  # of the command, shape merged in
    cfg: DictConfig  # of `python -m egrpo.train`
    policy: JanusPolicy
    frozen: Any  # the untouched model: the reference of both sides, and the weights that every step starts from
    records: list[PromptRecord]

    @property
    def device(self) -> torch.device:
        return self.policy.device


def read_settings(defaults: dict[str, Any], arguments: list[str]) -> Any:
    """Defaults, then those of the shape, then the command line's; `dry_run=true` puts tiny sizes in the shape's place.

    Raises:
        ValueError: unknown shape, or a key that does not exist.
    """
    given: Any = OmegaConf.from_cli(arguments)
    shape = str(given.get("shape", defaults["shape"]))
    known = sorted(path.stem for path in SIZES.glob("*.yaml"))
    if shape not in known:
        raise ValueError(f"shape={shape} is unknown: choose one of {', '.join(known)}")
    settings: Any = OmegaConf.merge(defaults, OmegaConf.load(SIZES / f"{shape}.yaml"))
    unknown = sorted(set(given) - set(settings))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(settings))}")
    if given.get("dry_run"):
        settings = OmegaConf.merge(settings, OmegaConf.load(SIZES / "dry.yaml"))
    settings = OmegaConf.merge(settings, given)
    if isinstance(settings.architecture, str):
        settings.architecture = OmegaConf.load(
            Path(config_dir()) / "architecture" / f"{settings.architecture}.yaml"
        ).config
    check(settings)
    return settings


def check(settings: Any) -> None:
    """Raises a ValueError for what cannot be run here."""
    if str(settings.device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"shape={settings.shape} runs on an accelerator (device={settings.device}), and torch sees none here: run "
            "it where there is one, or try its code at tiny sizes with dry_run=true"
        )
    if str(settings.checkpointing).lower() not in CHECKPOINTING:
        raise ValueError(f"checkpointing={settings.checkpointing}: choose one of {', '.join(CHECKPOINTING)}")
    if settings.clock not in CLOCKS or (settings.clock == "cpu" and settings.device != "cpu"):
        raise ValueError(f"clock={settings.clock}: choose wall, or cpu where device=cpu")
    for name in ("repeats", "prompts", "threads"):
        if int(settings[name]) < 1:
            raise ValueError(f"{name}={settings[name]}: give at least 1")


def build(settings: Any) -> Subject:
    """The policy of the settings, and its frozen copy."""
    cfg, records = configuration(settings), read_records(settings)
    policy = build_policy(settings, cfg, records)
    frozen = copy.deepcopy(policy.model).requires_grad_(False).eval()
    return Subject(settings, cfg, policy, frozen, records)


def read_records(settings: Any) -> list[PromptRecord]:
    """As many prompts of the file as a step has, two at least: a comparison needs two."""
    return read_prompts(resolve(settings.prompt_file))[: max(int(settings.prompts), 2)]


def build_policy(settings: Any, cfg: DictConfig, records: list[PromptRecord]) -> JanusPolicy:
    """In memory; random weights where no checkpoint is named."""
    torch.set_num_threads(settings.threads)
    if settings.checkpoint is not None:
        model, tokenizer = load_janus(settings.checkpoint, settings.dtype)
        model.to(settings.device)
    else:
        tokenizer = word_tokenizer(int(settings.architecture.text_config.vocab_size), records)
        model = random_model(settings, tokenizer)
    policy = JanusPolicy(
        model,
        tokenizer,
        cfg.model.templates,
        max_plan_tokens=int(settings.plan_tokens),
        chunk_size=cfg.model.chunk_size,
        padding=settings.padding,
        num_image_tokens=settings.image_tokens,
        decode_batch=cfg.model.decode_batch,
        gradient_checkpointing=str(settings.checkpointing).lower() != "false",
    )
    if settings.checkpoint is None:
        let_plans_end(policy, records, settings.plan_tokens / 2)
    return policy


def configuration(settings: Any) -> DictConfig:
    """The product's own configuration of a run of these sizes; the policy is put in afterwards."""
    overrides = [
        "+experiment=shapes_paper_rewards",
        f"model={settings.model}",
        f"reward=[{','.join(settings.rewards)}]",
        f"reward_models={settings.reward_models}",
        f"reward_dtype={settings.reward_dtype}",
        f"rollout.group_size={settings.group_size}",
        f"rollout.cfg_weight={settings.cfg_weight}",
        f"rollout.padding={settings.padding}",
        "rollout.overlap_rewards=false",  # or their time would not show
        f"objective.micro_batch_size={'null' if settings.micro_batch_size is None else settings.micro_batch_size}",
        f"seed={settings.seed}",
        "run_dir=null",
        *settings.overrides,
    ]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("train", overrides)


def random_model(settings: Any, tokenizer: Any) -> Any:
    """A Janus of the settings' architecture with random weights."""
    architecture: Any = OmegaConf.to_container(settings.architecture, resolve=True)
    architecture["text_config"] |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = tokenizer.convert_tokens_to_ids("<image_placeholder>")
    config = JanusConfig(**architecture, image_token_id=image)
    torch.manual_seed(settings.seed)
    with torch.device(settings.device):
        model: Any = JanusForConditionalGeneration._from_config(config, dtype=getattr(torch, settings.dtype))
    # At transformers' scale an image token would hardly move the logits, and a comparison would prove little.
    inner = model.model
    with torch.no_grad():
        inner.generation_embeddings.weight.normal_()
        for weight in (*inner.generation_aligner.parameters(), *inner.generation_head.parameters()):
            if weight.dim() == 2:
                weight.normal_(0, weight.shape[1] ** -0.5)
    return model.eval()


def word_tokenizer(size: int, records: list[PromptRecord]) -> PreTrainedTokenizerFast:
    """Words of the prompts and made-up ones, `size` in all: a plan of any ids is a text that reads back as these ids.

    Raises:
        ValueError: `size` is too small for the prompts' words.
    """
    split = Whitespace()
    words = {word for record in records for word, _ in split.pre_tokenize_str(record.prompt)}
    known = [*SPECIAL, *sorted(words | set(".:"))]
    if len(known) > size:
        raise ValueError(f"a vocabulary of {size} is too small for {len(known)} words of prompts: enlarge it")
    vocabulary = {word: i for i, word in enumerate(known)}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), size)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
        extra_special_tokens={
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_placeholder>",
        },
    )


@torch.no_grad()
def let_plans_end(policy: JanusPolicy, records: list[PromptRecord], mean_tokens: float) -> None:
    """Sets random weights so that every token ends the plan with a chance of about 1 / mean_tokens.

    Untrained weights would practically never end a plan. Component 0 of the stream becomes the bias that Llama's head
    lacks: all text embeddings share it, and the head reads it for end-of-sequence alone. End-of-sequence is one of the
    first ids, so that inverse-CDF sampling ends a plan where the sample's number is small: the length of a plan depends
    on the random numbers, hardly on what was written.
    """
    backbone = policy.backbone
    embedding: Any = backbone.language_model.get_input_embeddings().weight
    head: Any = backbone.lm_head.weight
    embedding[:, 0] = float(embedding.float().norm(dim=1).mean())
    eos = policy.tokenizer.eos_token_id
    head[:, 0] = 0
    head[eos] = 0
    ids = torch.tensor([policy.reasoning_ids(records[0].prompt)], device=policy.device)
    everywhere = torch.ones_like(ids)
    hidden = backbone.hidden(backbone.embed_text(ids), everywhere, everywhere.cumsum(1) - 1)[0, -1]
    others = backbone.lm_head(hidden).float().logsumexp(0)
    chance = 1 / mean_tokens
    head[eos, 0] = float((others + math.log(chance / (1 - chance))) / hidden[0].float())
