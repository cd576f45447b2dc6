"""groundingdino_swint_ogc.pth -> a directory that transformers' GroundingDinoForObjectDetection loads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
)

from egrpo.conversion.checkpoints import (
    ConversionError,
    Summary,
    check_keys,
    find_file,
    load_state,
    read_json,
    save_converted,
)

FILE = "groundingdino_swint_ogc.pth"
BERT = "bert-base-uncased"

# GroundingDINO_SwinT_OGC.py, the settings of the official file (github.com/IDEA-Research/GroundingDINO).
SWIN_T_OGC: dict[str, Any] = {
    "backbone_dims": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "nheads": 8,
    "num_queries": 900,
    "enc_n_points": 4,
    "dec_n_points": 4,
    "max_text_len": 256,
}

# Settings with only one value that upstream's Swin-T and the native model both have: anything else would convert into
# another model without a word.
FIXED: dict[str, Any] = {
    "backbone": "swin_T_224_1k",
    "position_embedding": "sine",
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
    "return_interm_indices": [1, 2, 3],
    "pre_norm": False,
    "hidden_dim": 256,
    "query_dim": 4,
    "num_patterns": 0,
    "num_feature_levels": 4,
    "two_stage_type": "standard",
    "two_stage_bbox_embed_share": False,
    "transformer_activation": "relu",
    "dec_pred_bbox_embed_share": True,
    "embed_init_tgt": True,
    "text_encoder_type": BERT,
    "use_text_enhancer": True,
    "use_fusion_layer": True,
    "use_text_cross_attention": True,
    "sub_sentence_present": True,
}

# Keys of the official file that the native model does without, and why.
DROPPED = (
    r"label_enc\.weight",  # for denoising queries, in training only
    r"bert\.embeddings\.position_ids",  # 0, 1, 2, ...
    r"bert\.pooler\.dense\.(weight|bias)",  # phrases are read token by token
    r"backbone\.0\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",  # follows from the window size
)
# The native Swin has a last norm that a backbone never uses; the official one has none.
UNUSED = "model.backbone.conv_encoder.model.swin.layernorm."

# The four ids at which the native model cuts a caption into phrases.
DELIMITERS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}

_SWIN = r"model\.backbone\.conv_encoder\.model\.swin\."
_BLOCK = _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_ENCODER = r"model\.encoder\.layers\.(\d+)\."
_DECODER = r"model\.decoder\.layers\.(\d+)\."
_BLOCK_TO, _ENCODER_TO = r"backbone.0.layers.\1.blocks.\2.", r"transformer.encoder.layers.\1."
_TEXT_TO, _FUSION_TO = r"transformer.encoder.text_layers.\1.", r"transformer.encoder.fusion_layers.\1."
_DECODER_TO = r"transformer.decoder.layers.\1."
_STAGE = r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage"

# Beginnings of native names -> beginnings of official ones; the first that fits counts, and some are the same.
RENAMES: tuple[tuple[str, str], ...] = (
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.", "backbone.0.patch_embed.proj."),
    (_SWIN + r"embeddings\.norm\.", "backbone.0.patch_embed.norm."),
    (_BLOCK + r"attention\.o_proj\.", _BLOCK_TO + "attn.proj."),
    (_BLOCK + r"attention\.(relative_position_bias\.)?", _BLOCK_TO + "attn."),
    (_BLOCK + r"layernorm_before\.", _BLOCK_TO + "norm1."),
    (_BLOCK + r"layernorm_after\.", _BLOCK_TO + "norm2."),
    (_BLOCK + r"mlp\.", _BLOCK_TO + "mlp."),
    (_SWIN + r"encoder\.layers\.(\d+)\.downsample\.", r"backbone.0.layers.\1.downsample."),
    (_STAGE + r"2\.", "backbone.0.norm1."),  # stages count from 1 here, from 0 there
    (_STAGE + r"3\.", "backbone.0.norm2."),
    (_STAGE + r"4\.", "backbone.0.norm3."),
    (r"model\.input_proj_vision\.", "input_proj."),
    (r"model\.text_backbone\.", "bert."),
    (r"model\.text_projection\.", "feat_map."),
    (r"model\.level_embed", "transformer.level_embed"),
    (r"model\.query_position_embeddings\.", "transformer.tgt_embed."),
    (r"model\.enc_output", "transformer.enc_output"),
    (r"model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed."),
    (_ENCODER + r"text_enhancer_layer\.self_attn\.", _TEXT_TO + "self_attn."),
    (_ENCODER + r"text_enhancer_layer\.fc", _TEXT_TO + "linear"),
    (_ENCODER + r"text_enhancer_layer\.layer_norm_before\.", _TEXT_TO + "norm1."),
    (_ENCODER + r"text_enhancer_layer\.layer_norm_after\.", _TEXT_TO + "norm2."),
    (_ENCODER + r"fusion_layer\.vision_param", _FUSION_TO + "gamma_v"),
    (_ENCODER + r"fusion_layer\.text_param", _FUSION_TO + "gamma_l"),
    (_ENCODER + r"fusion_layer\.layer_norm_vision\.", _FUSION_TO + "layer_norm_v."),
    (_ENCODER + r"fusion_layer\.layer_norm_text\.", _FUSION_TO + "layer_norm_l."),
    (_ENCODER + r"fusion_layer\.attn\.(values_|out_|)vision_proj\.", _FUSION_TO + r"attn.\2v_proj."),
    (_ENCODER + r"fusion_layer\.attn\.(values_|out_|)text_proj\.", _FUSION_TO + r"attn.\2l_proj."),
    (_ENCODER + r"deformable_layer\.self_attn\.", _ENCODER_TO + "self_attn."),
    (_ENCODER + r"deformable_layer\.self_attn_layer_norm\.", _ENCODER_TO + "norm1."),
    (_ENCODER + r"deformable_layer\.fc", _ENCODER_TO + "linear"),
    (_ENCODER + r"deformable_layer\.final_layer_norm\.", _ENCODER_TO + "norm2."),
    (_DECODER + r"self_attn\.", _DECODER_TO + "self_attn."),
    # Not in order of use: norm1 belongs to the attention to the image, norm2 to the queries' self-attention.
    (_DECODER + r"encoder_attn_layer_norm\.", _DECODER_TO + "norm1."),
    (_DECODER + r"self_attn_layer_norm\.", _DECODER_TO + "norm2."),
    (_DECODER + r"encoder_attn\.", _DECODER_TO + "cross_attn."),
    (_DECODER + r"encoder_attn_text\.", _DECODER_TO + "ca_text."),
    (_DECODER + r"encoder_attn_text_layer_norm\.", _DECODER_TO + "catext_norm."),
    (_DECODER + r"fc", _DECODER_TO + "linear"),
    (_DECODER + r"final_layer_norm\.", _DECODER_TO + "norm3."),
    (r"model\.decoder\.layer_norm\.", "transformer.decoder.norm."),
    (r"model\.decoder\.reference_points_head\.", "transformer.decoder.ref_point_head."),
    (r"model\.decoder\.bbox_embed\.", "transformer.decoder.bbox_embed."),
)
# Query, key and value lie stacked in one official tensor.
STACKED = (
    (r"(backbone\..*\.attn)\.(q|k|v)_proj\.(weight|bias)", r"\1.qkv.\3"),
    (r"(transformer\..*)\.(query|key|value)\.(weight|bias)", r"\1.in_proj_\3"),
)


def convert(source: Path, target: Path) -> Summary:
    """Writes model, tokenizer and image processor (shorter side 800, longer at most 1333 pixels) into `target`.

    Args:
        source: The official file, or the folder that holds it. Beside the file: the tokenizer in `bert-base-uncased`
            and, where the sizes are not those of Swin-T OGC, the settings as config.json (with `backbone_dims`) and
            bert-base-uncased/config.json.
        target: Made if absent. Weights keep the dtype they have in the file.

    Raises:
        ConversionError: a file is missing, a setting has no native counterpart, or keys or shapes differ.
    """
    file = find_file(source, [FILE])
    folder = file.parent
    official = load_state(file, unwrap=["model"], strip="module.")
    tokenizer = read_tokenizer(folder / BERT)
    with torch.device("meta"):
        model = GroundingDinoForObjectDetection(read_config(folder))
    state = native_state(official, model.state_dict(), file)
    entries = len(official["bert.embeddings.word_embeddings.weight"])
    if len(tokenizer) > entries:
        raise ConversionError(
            f"the tokenizer in {folder / BERT} has {len(tokenizer)} entries, but {file} has embeddings for {entries}: "
            f"put the tokenizer of google-bert/{BERT} there"
        )
    summary = save_converted("gdino", model, state, file, target)
    tokenizer.save_pretrained(target)
    GroundingDinoImageProcessorPil().save_pretrained(target)
    return summary


def native_state(official: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Official tensors under native names.

    Args:
        wanted: The native state; only its names and shapes are read.
        file: Named in errors.

    Raises:
        ConversionError: official keys are missing or surplus, or the box heads that the native model shares differ.
    """
    sources = {name: origin(name) for name in wanted if not name.startswith(UNUSED)}
    found = [name for name in official if not any(re.fullmatch(pattern, name) for pattern in DROPPED)]
    check_keys(found, {name for name, _ in sources.values()}, file)
    state = {
        name: official[key] if third is None else official[key].chunk(3)[third].clone()
        for name, (key, third) in sources.items()
    }
    dtype = official["transformer.level_embed"].dtype
    state[UNUSED + "weight"] = torch.ones(wanted[UNUSED + "weight"].shape, dtype=dtype)
    state[UNUSED + "bias"] = torch.zeros(wanted[UNUSED + "bias"].shape, dtype=dtype)
    share_box_heads(state, file)
    return state


def origin(native: str) -> tuple[str, int | None]:
    """Name of the official tensor, and which third of it (None: all of it), for a native name.

    >>> origin("model.decoder.layers.0.self_attn.key.bias")
    ('transformer.decoder.layers.0.self_attn.in_proj_bias', 1)
    """
    name = native
    for pattern, replacement in RENAMES:
        name, hits = re.subn("^" + pattern, replacement, native)
        if hits:
            break
    for pattern, replacement in STACKED:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement), "qkv".index(match[2][0])
    return name, None


def share_box_heads(state: dict[str, Tensor], file: Path) -> None:
    """Makes the box heads of all decoder layers one, in place: the native model ties them.

    Raises:
        ConversionError: they are not equal in the file.
    """
    for name in state:
        match = re.fullmatch(r"(?:model\.decoder\.)?bbox_embed\.\d+\.(.+)", name)
        if match:
            first = state[f"bbox_embed.0.{match[1]}"]
            if not torch.equal(state[name], first):
                raise ConversionError(f"{file}: {origin(name)[0]} differs from layer 0, but all layers share one head")
            state[name] = first


def read_config(folder: Path) -> GroundingDinoConfig:
    """The native configuration, from the settings beside the official file or, without any, those of Swin-T OGC.

    Raises:
        ConversionError: a setting is missing or has no native counterpart.
    """
    path, bert = folder / "config.json", folder / BERT / "config.json"
    settings = {**FIXED, **SWIN_T_OGC} if not path.is_file() else read_json(path)
    settings.setdefault("backbone_dims", SWIN_T_OGC["backbone_dims"])
    require([*FIXED, *SWIN_T_OGC], settings, path)
    for name, value in FIXED.items():
        if settings[name] != value:
            raise ConversionError(f"{path}: {name} is {settings[name]!r}, but only {value!r} can be converted")
    dims = settings["backbone_dims"]
    require(SWIN_T_OGC["backbone_dims"], dims, path)
    swin = {
        "model_type": "swin",
        **{name: dims[name] for name in SWIN_T_OGC["backbone_dims"]},
        "out_indices": [level + 1 for level in settings["return_interm_indices"]],  # the native stem is stage 0
    }
    heads, width = settings["nheads"], settings["dim_feedforward"]
    return GroundingDinoConfig(
        backbone_config=swin,
        text_config={**(read_json(bert) if bert.is_file() else {}), "model_type": "bert"},  # its defaults: BERT base
        num_queries=settings["num_queries"],
        encoder_layers=settings["enc_layers"],
        decoder_layers=settings["dec_layers"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=width,
        decoder_ffn_dim=width,
        encoder_n_points=settings["enc_n_points"],
        decoder_n_points=settings["dec_n_points"],
        max_text_len=settings["max_text_len"],
        positional_embedding_temperature=FIXED["pe_temperatureH"],
        tie_word_embeddings=True,  # ties the box heads of the decoder's layers
        disable_custom_kernels=True,
    )


def require(names: Iterable[str], settings: Mapping[str, Any], path: Path) -> None:
    """Raises ConversionError unless `settings` has all `names`."""
    missing = [name for name in names if name not in settings]
    if missing:
        raise ConversionError(
            f"{path} lacks {', '.join(missing)}: it must hold GroundingDINO's own settings as JSON; the official "
            "checkpoint needs no such file"
        )


def read_tokenizer(folder: Path) -> BertTokenizer:
    """BERT's tokenizer from `folder`.

    Raises:
        ConversionError: it is not there, or numbers its delimiters in another way than the model expects.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise ConversionError(
            f"{folder} holds neither tokenizer.json nor vocab.txt: put the tokenizer files of google-bert/{BERT} there "
            "(tokenizer.json, tokenizer_config.json, vocab.txt); python -m egrpo.download what=rewards brings them"
        )
    tokenizer = BertTokenizer.from_pretrained(folder)
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in DELIMITERS}
    if found != DELIMITERS:
        raise ConversionError(f"the tokenizer in {folder} has the ids {found}, but the model needs {DELIMITERS}")
    return tokenizer
