"""The tokenizer takes any text; the fresh model is a native Janus with the codes for a codebook."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, JanusForConditionalGeneration

from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import draw_scene, write_plan
from egrpo.shapes.pretrain.build import build_model, build_processor, codebook
from egrpo.shapes.prompts import draw

TEXTS = [
    "",
    "a striped red circle on the left of a blue square",
    'say "no" — it\'s 10 % off\n\n\ttabs and  two blanks ',
    "🎨👩‍🚀 emoji, ünïcödé, 中文, العربية, \u200b, \x00",
    "{prompt} <b>markup</b> \\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_encodes_and_comes_back(text, tokenizer):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert None not in ids and (tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids)
    assert max(ids) < len(tokenizer)
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_words_of_the_world_are_single_tokens(tokenizer):
    rng = np.random.default_rng(0)
    prompts = [draw(rng) for _ in range(300)]
    plans = [write_plan(draw_scene(spec_of(record), rng), rng) for record in prompts]
    words = sum(len(text.split()) for text in plans)
    tokens = sum(len(tokenizer(f" {text}", add_special_tokens=False).input_ids) for text in plans)
    assert tokens < 1.6 * words  # words and punctuation
    assert sum(len(tokenizer(record.prompt).input_ids) for record in prompts) < 1.6 * sum(
        len(record.prompt.split()) for record in prompts
    )


def test_special_tokens_are_distinct_and_known(tokenizer):
    names = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    names += [tokenizer.image_token, tokenizer.boi_token, tokenizer.eoi_token]
    ids = tokenizer.convert_tokens_to_ids(names)
    assert len(set(ids)) == 6 and None not in ids
    assert [tokenizer(name, add_special_tokens=False).input_ids for name in names] == [[i] for i in ids]


def test_model_is_a_native_janus_with_untied_embeddings(small_model, tokenizer):
    assert type(small_model) is JanusForConditionalGeneration
    embeddings = small_model.model.language_model.get_input_embeddings().weight
    assert not small_model.config.tie_word_embeddings and not small_model.config.text_config.tie_word_embeddings
    assert small_model.lm_head.weight.data_ptr() != embeddings.data_ptr()
    assert embeddings.shape[0] == small_model.lm_head.weight.shape[0] == len(tokenizer)
    assert small_model.model.generation_embeddings.weight.shape[0] == atlas.NUM_CODES
    config = small_model.config.text_config
    ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_codebook_is_of_unit_norm_and_tells_all_codes_apart(small_model):
    rows = small_model.model.vqmodel.quantize.embedding.weight.detach()
    assert rows.shape == (atlas.NUM_CODES, 16)
    assert torch.equal(rows, codebook(16))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6, rtol=0)
    similarity = rows @ rows.T - 2 * torch.eye(len(rows))
    assert similarity.max() < 1 - 1e-5
    assert torch.equal((rows @ rows.T).argmax(1), torch.arange(len(rows)))


def test_model_survives_saving(small_model, tokenizer, tmp_path):
    small_model.save_pretrained(tmp_path)
    build_processor(tokenizer).save_pretrained(tmp_path)
    again = JanusForConditionalGeneration.from_pretrained(tmp_path)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in small_model.state_dict().items())
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer("a red circle").input_ids == tokenizer("a red circle").input_ids


def test_the_shipped_size_is_what_the_configuration_says(settings, tokenizer):
    config = build_model(tokenizer, settings["text"], settings["vq"]).config
    assert config.text_config.hidden_size == settings["text"]["hidden_size"]
    assert config.text_config.num_hidden_layers == settings["text"]["num_hidden_layers"]
    assert config.vq_config.num_embeddings == atlas.NUM_CODES
    assert config.vq_config.embed_dim == settings["vq"]["embed_dim"]
    assert list(config.vq_config.channel_multiplier) == settings["vq"]["channel_multiplier"]
