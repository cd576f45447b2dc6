"""What a plan must know of the policy: built on the meta device by the code that trains it, then counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVQVAE, JanusVQVAEConfig

from egrpo.base.errors import UserError
from egrpo.paths import resolve
from egrpo.planning.measuring import peak_bytes
from egrpo.policy.backbone import Backbone
from egrpo.policy.loading import freeze_all_but
from egrpo.policy.sampling import grid_size

TRUE_PRECISIONS = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}  # Lightning converts weights
MIXED_PRECISIONS = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


@dataclass(frozen=True)
class Matmul:
    """Weights of linear layers: one token takes 2 x `weights` operations forward, and as many for each gradient."""

    weights: int
    trained: int  # of them with a gradient of their own


@dataclass(frozen=True)
class Architecture:
    """Sizes of the policy and its reference; bytes, elements, and operations as FlopCounterMode counts them."""

    modules: dict[str, int]  # parameters by part of the model
    parameters: int
    parameter_bytes: int
    trained: int  # parameters
    trained_bytes: int
    language_trained_bytes: int  # of the language model's trained parameters, embedding included, lm_head not
    reference_bytes: int  # of what the reference copies
    copy_bytes: int  # of what a rollout copy holds: all but the vision tower and its aligner
    outside_bytes: int  # of the frozen weights outside the language model and its head, which FSDP2 does not divide
    around: int  # parameters of the language model and its head outside the layers, which FSDP2 gathers together
    largest_layer: int  # parameters of the largest layer of the language model
    largest: int  # elements of the largest parameter of the language model and its head
    dtype: torch.dtype  # of the weights
    compute_dtype: torch.dtype  # of activations and of the key/value cache
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocab: int  # of text
    codes: int  # of images
    image_tokens: int
    layer_matmul: Matmul  # all layers of the language model
    skipped_matmul: int  # weights of the layers' last projections, which recomputation need not run
    text_matmul: Matmul  # lm_head
    image_matmul: Matmul  # generation_head
    align_matmul: Matmul  # generation_aligner
    norms_trained: bool
    adapter_rank: int  # outputs of all LoRA down-projections of one layer
    layers_have_gradient: bool
    checkpointing: bool
    trains_all_layers: bool  # of the language model
    decode_bytes: int  # the VQ decoder's peak, an image
    decode_flops: int  # an image

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return self.compute_dtype.itemsize


class MetaPolicy(nn.Module):
    """As much of a JanusPolicy as adapters and references ask for, without tokenizer and weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.scoring: dict[str, Any] = {}
        self.load_again = None  # a reference copies what is here

    @property
    def backbone(self) -> Backbone:
        return Backbone.of(self.model)


def read_architecture(cfg: DictConfig) -> Architecture:
    """Of a composed run.

    Raises:
        UserError: the sizes of `model.path` are not known, or it holds another model than a Janus.
    """
    config = janus_config(cfg)
    name = str(cfg.model.dtype)
    dtype = getattr(config, "dtype", None) or torch.float32 if name == "auto" else getattr(torch, name, None)
    precision = str(cfg.trainer.precision)
    dtype = getattr(torch, TRUE_PRECISIONS[precision]) if precision in TRUE_PRECISIONS else dtype
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"model.dtype={name} is no type of torch: set float32 or bfloat16, for example")
    compute = getattr(torch, MIXED_PRECISIONS[precision]) if precision in MIXED_PRECISIONS else dtype
    trainable = cfg.model.get("trainable", ["language_model", "lm_head"])
    return _built(
        config.to_json_string(),
        dtype,
        compute,
        tuple(str(name) for name in trainable),
        _json(cfg.model.get("adapter")),
        _json(cfg.reference if cfg.objective.beta else None),
        cfg.model.get("num_image_tokens") or grid_size(config),
        bool(cfg.model.get("gradient_checkpointing", False)),
    )


@lru_cache(maxsize=32)  # plans of one model differ in much else
def _built(
    config: str,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    trainable: tuple[str, ...],
    adapter: str,
    reference: str,
    image_tokens: int,
    checkpointing: bool,
) -> Architecture:
    """Of a policy and its reference, built on the meta device; configurations as JSON."""
    with torch.device("meta"):
        model: Any = JanusForConditionalGeneration(JanusConfig(**json.loads(config)))
        model.to(dtype)
        freeze_all_but(model, list(trainable))
        policy = MetaPolicy(model)
        if json.loads(adapter) is not None:
            instantiate(OmegaConf.create(json.loads(adapter)), _convert_="object")(policy)
        frozen = None  # without a KL term none is built
        if json.loads(reference) is not None:
            frozen = instantiate(OmegaConf.create(json.loads(reference)), _convert_="object")(policy)
    return count(policy, frozen, compute_dtype=compute_dtype, image_tokens=image_tokens, checkpointing=checkpointing)


def _json(node: Any) -> str:
    return json.dumps(OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node)


def janus_config(cfg: DictConfig) -> JanusConfig:
    """Of the folder `model.path` if it is there, else by the published shapes that `architectures` holds."""
    path = str(cfg.model.path)
    file = resolve(path) / "config.json"
    known = {str(path): node.config for node in cfg.architectures.values() for path in node.paths}
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("model_type") != "janus":
            raise UserError(
                f"{file} says model_type {content.get('model_type')!r}: a plan needs a Janus in transformers' format "
                "(python -m egrpo.convert kind=janus)"
            )
    elif path in known:
        content = OmegaConf.to_container(known[path], resolve=True)
    else:
        raise UserError(
            f"model.path={path} holds no config.json, so its sizes are not known: name a folder that does, or "
            f"{' or '.join(known)}"
        )
    return JanusConfig(**{str(key): value for key, value in content.items() if key != "architectures"})


def count(
    policy: MetaPolicy, reference: Any, *, compute_dtype: torch.dtype, image_tokens: int, checkpointing: bool
) -> Architecture:
    """The numbers of a policy, on whatever device it is; nothing is computed but one decoding on `meta`."""
    model, backbone = policy.model, policy.backbone
    language, text = backbone.language_model, model.config.text_config
    layers = list(language.layers)
    weights, trained = list(policy.parameters()), [p for p in policy.parameters() if p.requires_grad]
    copies = list(reference.parameters()) if isinstance(reference, nn.Module) else []
    feeding = (backbone.language_model, backbone.generation_aligner, backbone.generation_embeddings)
    vq = model.model.vqmodel
    large = {id(p): p for part in (language, backbone.lm_head) for p in part.parameters()}
    inside = {id(p) for layer in layers for p in layer.parameters()}
    copied = {id(p): p for part in (*backbone.modules().values(), vq) for p in part.parameters()}
    decode_bytes, decode_flops = decoding(vq.config.to_json_string(), next(vq.parameters()).dtype, image_tokens)
    return Architecture(
        modules=parts(model),
        parameters=numel(weights),
        parameter_bytes=nbytes(weights),
        trained=numel(trained),
        trained_bytes=nbytes(trained),
        language_trained_bytes=nbytes(p for p in language.parameters() if p.requires_grad),
        reference_bytes=nbytes(copies),
        copy_bytes=nbytes(copied.values()),
        outside_bytes=nbytes(p for p in weights if not p.requires_grad and id(p) not in large),
        around=numel(p for key, p in large.items() if key not in inside),
        largest_layer=max(numel(layer.parameters()) for layer in layers),
        largest=max(p.numel() for p in large.values()),
        dtype=weights[0].dtype,
        compute_dtype=compute_dtype,
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_dim=layers[0].self_attn.head_dim,
        vocab=text.vocab_size,
        codes=model.config.vq_config.num_embeddings,
        image_tokens=image_tokens,
        layer_matmul=matmul(layers),
        skipped_matmul=sum(last_projection(layer) for layer in layers),
        text_matmul=matmul([backbone.lm_head]),
        image_matmul=matmul([backbone.generation_head]),
        align_matmul=matmul([backbone.generation_aligner]),
        norms_trained=any(p.requires_grad for p in layers[0].input_layernorm.parameters()),
        adapter_rank=sum(_rank(name, part) for name, part in layers[0].named_modules()),
        layers_have_gradient=any(p.requires_grad for part in feeding for p in part.parameters()),
        checkpointing=checkpointing,
        trains_all_layers=all(p.requires_grad for p in language.parameters()),
        decode_bytes=decode_bytes,
        decode_flops=decode_flops,
    )


@lru_cache
def decoding(config: str, dtype: torch.dtype, image_tokens: int) -> tuple[int, int]:
    """Peak bytes and operations of decoding one image by a VQ model of this configuration (JSON), run on `meta`."""
    side = math.isqrt(image_tokens)
    with torch.device("meta"), torch.no_grad():
        vqmodel: Any = JanusVQVAE(JanusVQVAEConfig(**json.loads(config)))
        vqmodel.to(dtype).eval()
        vqmodel.quantize.quant_state_dims = [side, side]
        codes = torch.zeros(1, image_tokens, dtype=torch.long)
        counter = FlopCounterMode(display=False)
        with counter:
            vqmodel.decode(codes)
        return peak_bytes(lambda: vqmodel.decode(codes)), counter.get_total_flops()


def parts(model: Any) -> dict[str, int]:
    """Parameters by part of a Janus model."""
    named: Mapping[str, nn.Module] = {**dict(model.model.named_children()), "lm_head": model.lm_head}
    return {name: numel(part.parameters()) for name, part in named.items()}


def matmul(modules: Iterable[nn.Module]) -> Matmul:
    """Of all linear layers in `modules`."""
    linear = [layer for module in modules for layer in _linear(module)]
    return Matmul(
        sum(layer.weight.numel() for layer in linear),
        sum(layer.weight.numel() for layer in linear if layer.weight.requires_grad),
    )


def last_projection(layer: nn.Module) -> int:
    """Weights of the layer's last linear map: recomputation stops once all that it feeds on is there again."""
    return _linear(layer)[-1].weight.numel()


def numel(tensors: Iterable[Tensor]) -> int:
    """Elements of all tensors."""
    return sum(tensor.numel() for tensor in tensors)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)


def _rank(name: str, part: Any) -> int:
    return part.out_features if isinstance(part, nn.Linear) and ".lora_A." in name else 0


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]
