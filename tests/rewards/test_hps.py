"""HPS from image and prompt to score: as the published code, in any batch, for any prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from egrpo.conversion.hps import convert
from egrpo.rewards.hps import HPSReward, clean, fit, pixel_values
from egrpo.types import PromptRecord

ONE_BY_ONE = 1e-6  # a batch sums in another order; measured: 1e-7


@dataclass(frozen=True)
class Published:
    """The conformance checkpoint converted, its inputs, and what the published code makes of them."""

    model: Path
    images: list[Image.Image]
    prompts: list[str]
    expected: dict[str, Tensor]

    @property
    def records(self) -> list[PromptRecord]:
        return [PromptRecord(prompt) for prompt in self.prompts]


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory) -> Published:
    folder = shared / "conformance" / "hps_tiny"
    target = tmp_path_factory.mktemp("hps")
    convert(folder, target)
    inputs = json.loads((folder / "inputs.json").read_text())
    images = [Image.open(folder / name) for name in inputs["images"]]
    return Published(target, images, inputs["prompts"], load_file(folder / "expected.safetensors"))


@pytest.fixture(scope="module")
def reward(published) -> HPSReward:
    return HPSReward(published.model)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Random weights for 48 x 48 images and a vocabulary of letters; needs no shared material."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = "!abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": 0}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={"vocab_size": len(words), "max_position_embeddings": 12, "projection_dim": 8, **marks, **sizes},
        vision_config={"image_size": 48, "patch_size": 8, "projection_dim": 8, **sizes},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def test_pixels_ids_and_features_are_those_of_the_published_code(published, reward):
    p, wanted = published, published.expected
    pixels = pixel_values(p.images, reward.side, reward.mean, reward.std)
    torch.testing.assert_close(pixels, wanted["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(reward.input_ids(p.prompts), wanted["input_ids"])
    with reward.placement() as model:
        images, texts = reward.embed_images(model, p.images), reward.embed_prompts(model, p.prompts)
    torch.testing.assert_close(images, wanted["image_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, wanted["text_features"], atol=1e-5, rtol=0)


def test_scores_are_those_of_the_published_code(published, reward):
    p = published
    scores = reward(p.images, p.records)
    assert scores.dtype == torch.float32 and scores.shape == (5,)
    torch.testing.assert_close(scores, p.expected["reward"], atol=1e-5, rtol=0)
    pairs = reward([image for image in p.images for _ in p.prompts], p.records * 5)
    torch.testing.assert_close(pairs.view(5, 5), p.expected["scores_all_pairs"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size, offload", [(1, False), (2, False), (3, True)])
def test_batches_and_order_do_not_matter(published, reward, batch_size, offload):
    p = published
    whole = reward(p.images, p.records)
    other = HPSReward(p.model, batch_size=batch_size, offload=offload)
    torch.testing.assert_close(other(p.images, p.records), whole, atol=ONE_BY_ONE, rtol=0)
    order = [3, 0, 4, 2, 1]
    turned = other([p.images[i] for i in order], [p.records[i] for i in order])
    torch.testing.assert_close(turned, whole[order], atol=ONE_BY_ONE, rtol=0)


def test_bfloat16_is_close(published, reward):
    p = published
    rough = HPSReward(p.model, dtype="bfloat16")(p.images, p.records)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, reward(p.images, p.records), atol=0.02, rtol=0)


def test_a_prompt_of_several_images_is_encoded_once(tiny):
    reward, seen = HPSReward(tiny, batch_size=6), []
    reward.placement.model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    images, records = [noise(48, 48, i) for i in range(6)], [PromptRecord(p) for p in "aabbab"]
    scores = reward(images, records)
    assert seen == [2]
    torch.testing.assert_close(
        scores, torch.cat([reward([i], [r]) for i, r in zip(images, records)]), atol=ONE_BY_ONE, rtol=0
    )


@pytest.mark.parametrize("named", [2, 0, 40, 49407])
def test_the_text_is_read_at_its_end_whatever_the_configuration_names(tiny, tmp_path, named):
    right = HPSReward(tiny)
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"]["eos_token_id"] = named
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompts = ["b c", "", "zebra", "a very long prompt that is cut"]
    ids = right.input_ids(prompts)
    with HPSReward(tmp_path).placement() as model:
        hidden = model.text_model(input_ids=ids).last_hidden_state
        wanted = model.text_projection(hidden[torch.arange(4), ids.argmax(-1)])
        found = HPSReward(tmp_path).embed_prompts(model, prompts)
    torch.testing.assert_close(found, wanted / wanted.norm(dim=-1, keepdim=True), atol=1e-6, rtol=0)


def test_ids_end_with_end_of_text_and_are_padded_with_0(tiny):
    reward = HPSReward(tiny)
    start, end = reward.tokenizer.bos_token_id, reward.tokenizer.eos_token_id
    short, empty, long = reward.input_ids(["A  b", " \n", "x " * 5000]).tolist()
    letter = reward.tokenizer.get_vocab()
    assert short == [start, letter["a</w>"], letter["b</w>"], end, *[0] * 8]
    assert empty == [start, end, *[0] * 10]
    assert long == [start, *[letter["x</w>"]] * 10, end]


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        ("A  DOG\t&amp;\n a cat ", "a dog & a cat"),
        ("fish &amp;amp; chips &amp;lt;3 &lt;b&gt;", "fish & chips <3 <b>"),
        ("<3 &amp;amp; &amp;lt;x", "<3 & <x"),  # ftfy itself decodes entities only where no < stands
        ("the cafÃ©’s â€œopenâ€\x9d sign", 'the café\'s "open" sign'),
        ("\ufb01sh \u00a0 \u3000x", "fish x"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("", ""),
    ],
)
def test_text_is_cleaned_as_in_open_clip(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "🦊🇩🇪👩‍👩‍👧",
        "&amp;amp;",
        "<|endoftext|> and <|startoftext|>",
        "\0\x7f\u202e",
        "a" * 10_000,
        "x " * 5_000,
    ],
)
def test_hostile_prompts_get_a_score_and_leave_others_alone(reward, published, prompt):
    p = published
    alone = reward(p.images[:1], p.records[:1])
    both = reward([p.images[0]] * 2, [PromptRecord(prompt), p.records[0]])
    assert both.isfinite().all() and both.abs().max() <= 1
    torch.testing.assert_close(both[1:], alone, atol=ONE_BY_ONE, rtol=0)


def test_the_longer_side_is_resized_and_the_rest_padded_with_black():
    high = fit(noise(30, 41), 24)  # 30 * 24 / 41 = 17.6 -> 18, 6 to pad
    assert high.shape == (3, 24, 24)
    assert high[..., 3:21].abs().sum((0, 1)).min() > 0
    assert not high[..., :3].any() and not high[..., 21:].any()
    wide = fit(noise(31, 20), 31)  # 11 to pad, of which 6 below
    assert torch.equal((wide * 255).round().byte()[:, 5:25], torch.tensor(np.asarray(noise(31, 20))).permute(2, 0, 1))
    assert not wide[:, :5].any() and not wide[:, 25:].any()
    assert fit(noise(400, 1), 24).shape == (3, 24, 24)


def test_what_bicubic_interpolation_overshoots_stays():
    edge = Image.new("RGB", (32, 32))
    edge.paste((255, 255, 255), (16, 0, 32, 32))
    pixels = fit(edge, 48)
    assert pixels.max() > 1.01 and pixels.min() < -0.01


def test_padding_is_normalised_too():
    pixels = pixel_values([Image.new("RGB", (48, 16), "white")], 48, [0.5] * 3, [0.25] * 3)
    assert torch.equal(pixels[0, :, 0], torch.full((3, 48), -2.0))
    assert torch.equal(pixels[0, :, 24], torch.full((3, 48), 2.0))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode(tiny, mode):
    assert HPSReward(tiny)([noise(48, 48).convert(mode)], [PromptRecord("a")]).isfinite().all()


def test_no_images(tiny):
    assert HPSReward(tiny)([], []).shape == (0,)


def test_a_folder_without_or_with_another_model_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"reward\.hps\.reward\.path"):
        HPSReward(tmp_path)
    CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs a model of type clip, .* holds one of type clip_vision_model"):
        HPSReward(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(tiny, tmp_path):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tiny / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors .* the first visual_projection\.weight"):
        HPSReward(tmp_path)


def test_a_tokenizer_without_end_of_text_is_refused(tiny, tmp_path):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="does not end a text with its end-of-text token"):
        HPSReward(tmp_path)
