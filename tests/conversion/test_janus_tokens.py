"""The original's tokenizer and image processor come along, with the ids that they themselves tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoProcessor, JanusProcessor

from egrpo.conversion import janus, janus_original
from egrpo.conversion.checkpoints import ConversionError
from egrpo.policy import JanusPolicy
from egrpo.policy.sampling import pad_token
from tests.conversion.janus_pieces import edit, same_files, write

PAD = "<｜▁pad▁｜>"


@pytest.fixture
def with_tokenizer(janus_copy: Path, janus_stored: dict[str, Tensor]) -> Path:
    """A source with a tokenizer like the official ones: byte-level, BOS by a setting, another padding token by
    name, and no image placeholder."""
    write(janus_copy, janus_stored)
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {f"<filler{i}>": i for i in range(len(vocab), 300)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", PAD, "<begin_of_image>", "<end_of_image>"])
    tokenizer.save(str(janus_copy / "tokenizer.json"))
    special = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "pad_token": "<eos>"}
    (janus_copy / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "model_max_length": 16384, "bos_token": "<bos>"}
    (janus_copy / "tokenizer_config.json").write_text(json.dumps(settings))
    images = {"image_processor_type": "VLMImageProcessor", "image_size": 128, "image_mean": [0.5, 0.4, 0.3]}
    (janus_copy / "preprocessor_config.json").write_text(json.dumps(images | {"image_std": [0.5] * 3, "min_size": 14}))
    (janus_copy / "processor_config.json").write_text(json.dumps({"processor_class": "VLChatProcessor"}))
    return janus_copy


def test_the_tokenizer_comes_along(with_tokenizer: Path, tmp_path: Path) -> None:
    (with_tokenizer / "tiny_dims.json").write_text(
        json.dumps(json.loads((with_tokenizer / "tiny_dims.json").read_text()) | {"special_token_ids": {"pad": 7}})
    )
    summary = janus.convert(with_tokenizer, tmp_path / "native")
    assert str(summary).endswith(str(tmp_path / "native"))  # nothing to remark
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    assert isinstance(processor, JanusProcessor) and processor.num_image_tokens == 64
    assert processor.image_processor.size["height"] == 128
    assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3]
    tokenizer, core = processor.tokenizer, Tokenizer.from_file(str(with_tokenizer / "tokenizer.json"))
    text = "User: a réd cat\n\nAssistant:"
    ids = tokenizer(text)["input_ids"]
    assert ids == [300, *core.encode(text).ids] and tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("<begin_of_image>" + PAD)["input_ids"] == [300, 303, 302]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (302, 301, 16384)
    assert tokenizer.get_vocab() == core.get_vocab() | {"<image_placeholder>": 305}
    policy = JanusPolicy.from_pretrained(tmp_path / "native", {"reasoning": "Draw {prompt}"}, max_plan_tokens=4)
    assert (policy.pad, policy.begin_of_image, pad_token(policy.model)) == (302, 303, 302)
    assert policy.model.config.image_token_id == 305
    rollout = policy.rollout(["a cat"], 1, seed=0, step=0, cot=True, cfg_weight=5.0)
    assert rollout.pixels.shape == (1, 128, 128, 3) and rollout.image.context_ids[0, -1] == 303
    janus_original.convert(tmp_path / "native", tmp_path / "back")
    assert same_files(with_tokenizer, tmp_path / "back", but=("model.safetensors",))


def test_tokenizers_that_do_not_fit_are_refused(with_tokenizer: Path, tmp_path: Path) -> None:
    path, target = with_tokenizer / "processor_config.json", tmp_path / "target"
    path.write_text('{"image_start_tag": "<boi>"}')
    with pytest.raises(ConversionError, match=r"does not know boi_token \(<boi>\)"):
        janus.convert(with_tokenizer, target)
    path.write_text("{}")
    edit(with_tokenizer / "config.json", "language_config.vocab_size", 305)
    with pytest.raises(ConversionError, match="no room for the special tokens image_placeholder 305"):
        janus.convert(with_tokenizer, target)
    (with_tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(ConversionError, match="is no tokenizer"):
        janus.convert(with_tokenizer, target)
    (with_tokenizer / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match=r"tokenizer_config\.json but no tokenizer\.json"):
        janus.convert(with_tokenizer, target)
    assert not target.exists()
