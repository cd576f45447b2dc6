"""GIT from image and nouns to score: as the published code, in any batch, with its constants."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer, GitConfig, GitForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from egrpo.rewards.git import GITReward
from egrpo.types import PromptRecord

ONE_BY_ONE = 1e-6  # a batch sums in another order; measured: 2e-7
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]


@dataclass(frozen=True)
class Published:
    """The conformance checkpoint, its inputs, and what the published code makes of them."""

    model: Path
    images: list[Image.Image]
    inputs: dict[str, Any]
    expected: dict[str, Tensor]

    @property
    def records(self) -> list[PromptRecord]:
        return [PromptRecord.from_dict({"prompt": "", **sample}) for sample in self.inputs["samples"]]


@pytest.fixture(scope="module")
def published(shared) -> Published:
    folder = shared / "conformance" / "git_tiny"
    inputs = json.loads((folder / "inputs_and_rewards.json").read_text())
    images = [Image.open(folder / name) for name in inputs["images"]]
    return Published(folder, images, inputs, load_file(folder / "expected.safetensors"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Random weights and a vocabulary of letters; needs no shared material."""
    folder = tmp_path_factory.mktemp("tiny")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {"image_size": 20, "patch_size": 8, **sizes}  # no whole number of patches, as in a larger GIT
    torch.manual_seed(0)
    config = GitConfig(vision_config=vision, vocab_size=len(WORDS), max_position_embeddings=12, **marks, **sizes)
    model = GitForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}).save_pretrained(folder)
    return folder


def noise(seed: int) -> Image.Image:
    pixels = torch.randint(256, (24, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def asked(*nouns: str) -> PromptRecord:
    return PromptRecord("", nouns=list(nouns))


def test_pixels_ids_and_logits_are_those_of_the_published_code(published):
    p, reward = published, GITReward(published.model, batch_size=5)
    pixels = reward.processor([image.convert("RGB") for image in p.images], return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, p.expected["pixel_values"], atol=1e-5, rtol=0)
    ids, last = reward.question_ids(p.inputs["questions"])
    for j, row in enumerate(ids):
        wanted = p.expected[f"input_ids.{j}"].tolist()
        assert [reward.tokenizer.cls_token_id, *row[: last[j] + 1].tolist()] == wanted
    assert [reward.yes, reward.no] == [p.inputs["yes_token_id"], p.inputs["no_token_id"]]
    owners = torch.arange(3).repeat_interleave(9)
    with reward.placement() as model:
        logits = reward.last_logits(model, p.images, owners, p.inputs["questions"] * 3).view(3, 9, -1)
    torch.testing.assert_close(logits, p.expected["last_logits"], atol=1e-4, rtol=0)
    p_yes = (logits[..., reward.yes] - logits[..., reward.no]).sigmoid()
    torch.testing.assert_close(p_yes, p.expected["p_yes"], atol=1e-5, rtol=0)


def test_rewards_are_those_of_the_published_code(published):
    p, reward = published, GITReward(published.model)
    scores = reward([image for image in p.images for _ in p.records], p.records * 3)
    assert scores.dtype == torch.float32
    wanted = torch.tensor(p.inputs["rewards_image_by_sample"])
    torch.testing.assert_close(scores.view(wanted.shape), wanted, atol=1e-5, rtol=0)
    assert reward.applies(p.records).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("batch_size, offload", [(1, False), (2, False), (5, True)])
def test_batches_and_order_do_not_matter(tiny, batch_size, offload):
    images = [noise(i) for i in range(6)]
    records = [asked("a"), asked("a b c d e", "b"), asked(), asked("c", "dd", "efgh"), asked("h"), asked("a", "a")]
    one = GITReward(tiny, batch_size=1)
    singles = torch.cat([one([image], [record]) for image, record in zip(images, records)])
    assert len(singles.unique()) == 6
    reward = GITReward(tiny, batch_size=batch_size, offload=offload)
    torch.testing.assert_close(reward(images, records), singles, atol=ONE_BY_ONE, rtol=0)
    order = [4, 2, 0, 5, 1, 3]
    turned = reward([images[i] for i in order], [records[i] for i in order])
    torch.testing.assert_close(turned, singles[order], atol=ONE_BY_ONE, rtol=0)


def test_shared_images_give_the_logits_of_a_plain_forward_pass(tiny):
    reward, images = GITReward(tiny, batch_size=4), [noise(0), noise(1)]
    owners, questions = torch.tensor([1, 0, 0, 1, 1]), ["a?", "b c d e?", "f?", "g h?", "zz?"]
    with reward.placement() as model:
        found = reward.last_logits(model, images, owners, questions)
        for row, (owner, question) in enumerate(zip(owners, questions)):
            ids = [reward.tokenizer.cls_token_id, *reward.tokenizer(question, add_special_tokens=False).input_ids]
            pixels = reward.processor([images[owner]], return_tensors="pt").pixel_values
            plain = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
            torch.testing.assert_close(found[row], plain, atol=1e-5, rtol=0)


def test_an_image_is_encoded_once_and_batches_are_bounded(tiny):
    reward, seen, pairs = GITReward(tiny, batch_size=3), [], []
    model = reward.placement.model.git
    model.image_encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.encoder.register_forward_pre_hook(lambda _, args: pairs.append(len(args[0])))
    reward([noise(0), noise(1), noise(2), noise(3)], [asked("a", "b", "c", "d"), asked("e"), asked(), asked("f", "g")])
    assert seen == [3]  # the third has nothing to ask
    assert pairs == [3, 3, 3, 1]


def test_bfloat16_is_close(published):
    p = published
    rough = GITReward(p.model, dtype="bfloat16")(p.images[:2], p.records[:2])
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, GITReward(p.model)(p.images[:2], p.records[:2]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "record, constant",
    [
        ({"task_type": "spatial", "nouns": ["a"], "attr_nouns": ["b"]}, 0.0),
        ({"task_type": "numeracy", "nouns": ["a"]}, 0.0),
        ({"task_type": "numeracy", "nouns": None}, 0.0),
        ({"nouns": []}, 1.0),
        ({"nouns": None}, 1.0),
        ({"nouns": ["a"], "attr_nouns": []}, 1.0),
        ({"nouns": ["a"], "attr_nouns": None}, None),
        ({"nouns": [], "attr_nouns": ["a"], "task_type": "color"}, None),
    ],
)
def test_constants_and_where_they_stand(tiny, record, constant):
    reward, records = GITReward(tiny), [PromptRecord.from_dict({"prompt": "", **record}), asked("b")]
    scores = reward([noise(0), noise(0)], records)
    assert reward.applies(records).dtype == torch.bool
    assert reward.applies(records).tolist() == [constant is None, True]
    if constant is None:
        torch.testing.assert_close(scores[:1], reward([noise(0)], [asked("a")]), atol=ONE_BY_ONE, rtol=0)
    else:
        assert scores[0] == constant
    assert 0 < scores[1] < 1


def test_attributes_come_before_nouns_and_are_averaged(tiny):
    reward = GITReward(tiny)
    record = PromptRecord("", nouns=["h"], attr_nouns=["a b", "c"])
    parts = reward([noise(0)] * 2, [asked("a b"), asked("c")])
    assert reward([noise(0)], [record]).item() == pytest.approx(parts.mean().item(), abs=ONE_BY_ONE)


@pytest.mark.parametrize(
    "noun", ["", " ", "🦊🇩🇪", "\ud83d", "&amp;", "[SEP] [CLS]", "?", "\0\u202e", "a" * 10_000, "a " * 5_000]
)
def test_hostile_nouns_get_a_score_and_leave_others_alone(tiny, noun):
    reward = GITReward(tiny)
    scores = reward([noise(0)] * 2, [asked(noun), asked("a")])
    assert 0 <= scores[0] <= 1
    torch.testing.assert_close(scores[1:], reward([noise(0)], [asked("a")]), atol=ONE_BY_ONE, rtol=0)


def test_a_question_that_is_too_long_keeps_its_question_mark(tiny):
    reward = GITReward(tiny)
    ids, last = reward.question_ids(["a " * 50 + "?", "b?"])
    letter, mark = WORDS.index("a"), WORDS.index("?")
    assert ids[0].tolist() == [*[letter] * 10, mark] and last.tolist() == [10, 1]  # 12 positions, the first is [CLS]
    assert ids[1].tolist() == [WORDS.index("b"), mark, *[0] * 9]


def test_no_images_and_nothing_to_ask(tiny):
    reward = GITReward(tiny)
    assert reward([], []).shape == (0,) and reward.applies([]).shape == (0,)
    assert reward([noise(0)], [asked()]).tolist() == [1.0]


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"reward\.git\.reward\.path"):
        GITReward(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(tiny, tmp_path):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tiny / "model.safetensors")
    del state["git.encoder.layer.1.output.dense.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors .* the first git\.encoder\.layer\.1\.output\.dense\.bias"):
        GITReward(tmp_path)


def test_a_vocabulary_without_the_answers_is_refused(tiny, tmp_path):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    vocabulary = {("zz" if word == "no" else word): i for i, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no token 'no'"):
        GITReward(tmp_path)
