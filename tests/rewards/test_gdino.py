"""The object-detector reward, from images and prompts to scores, against values of the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from egrpo.conversion.gdino import convert
from egrpo.rewards.detection_rules import Detection
from egrpo.rewards.gdino import Caption, GroundingDinoReward, phrase_scores
from egrpo.types import PromptRecord

PAIRS = [(i, j) for i in range(2) for j in range(2)]  # image, caption
SMALL = {"shortest_edge": 96, "longest_edge": 144}  # where nothing is compared with published values: 60 times faster


@pytest.fixture(scope="session")
def source(shared: Path) -> Path:
    return shared / "conformance" / "gdino_tiny"


@pytest.fixture(scope="session")
def inputs(source: Path) -> dict[str, Any]:
    return json.loads((source / "inputs_and_rewards.json").read_text())


@pytest.fixture(scope="session")
def expected(source: Path) -> dict[str, Tensor]:
    return load_file(source / "expected.safetensors")


@pytest.fixture(scope="session")
def images(source: Path, inputs: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(source / name) for name in inputs["images"]]


@pytest.fixture(scope="session")
def records(inputs: dict[str, Any]) -> list[PromptRecord]:
    return [PromptRecord(f"a photo of {' and '.join(nouns)}", nouns=nouns) for nouns in inputs["nouns"]]


@pytest.fixture(scope="session")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gdino")
    convert(source, target)
    return target


@pytest.fixture(scope="session")
def published(folder: Path) -> GroundingDinoReward:
    return GroundingDinoReward(folder, quirks="reference")


Predictions = dict[tuple[int, int], tuple[Tensor, Tensor]]  # (width, tokens) -> logits [Q, L], boxes [Q, 4]


@pytest.fixture(scope="session")
def full(
    published: GroundingDinoReward, images: list[Image.Image], records: list[PromptRecord]
) -> tuple[list[list[Detection]], Predictions]:
    """Detections of all pairs at the published size, and the predictions behind them: computed once, for it is slow."""
    seen: Predictions = {}
    predict = published.predict

    def watched(shown: list[Image.Image], captions: list[Caption]) -> tuple[Tensor, Tensor]:
        logits, boxes = predict(shown, captions)
        for row, (image, caption) in enumerate(zip(shown, captions)):
            seen[image.width, len(caption.ids)] = logits[row], boxes[row]
        return logits, boxes

    published.predict = watched  # type: ignore[method-assign]
    found = published.detect([images[i] for i, _ in PAIRS], [records[j] for _, j in PAIRS])
    published.predict = predict  # type: ignore[method-assign]
    assert len(seen) == len(PAIRS)
    return found, seen


@pytest.fixture
def small(folder: Path) -> GroundingDinoReward:
    reward = GroundingDinoReward(folder, threshold=0.22)
    reward.processor.size = SMALL
    return reward


def test_pixels_equal_the_published_transform(
    published: GroundingDinoReward, images: list[Image.Image], expected: dict[str, Tensor]
) -> None:
    for i, image in enumerate(images):
        pixels = published.processor([image.convert("RGB")], return_tensors="pt")["pixel_values"][0]
        assert list(pixels.shape) == expected[f"full.{i}.size"].tolist()
        assert_close(pixels[:, ::8, ::8], expected[f"full.{i}.pixel_values_every_8th"], atol=1e-6, rtol=0)


def test_captions_and_positive_maps_are_exact(
    published: GroundingDinoReward, records: list[PromptRecord], expected: dict[str, Tensor]
) -> None:
    for j, record in enumerate(records):
        caption = published.caption(record)
        assert torch.equal(caption.ids, expected[f"caption.{j}.input_ids"])
        assert torch.equal(caption.positive_map, expected[f"caption.{j}.positive_map"])


def test_predictions_match_the_published_code(
    published: GroundingDinoReward,
    images: list[Image.Image],
    records: list[PromptRecord],
    expected: dict[str, Tensor],
    full: tuple[list[list[Detection]], Predictions],
) -> None:
    for i, j in PAIRS:
        caption, key = published.caption(records[j]), f"full.{i}.{j}."
        logits, boxes = full[1][images[i].width, len(caption.ids)]
        assert_close(logits[:, : len(caption.ids)], expected[key + "pred_logits"], atol=1e-3, rtol=0)
        assert logits[:, len(caption.ids) :].eq(-torch.inf).all()  # the padding of the shorter caption
        assert_close(boxes, expected[key + "pred_boxes"], atol=1e-4, rtol=0)
        assert_close(phrase_scores(caption, logits), expected[key + "phrase_scores"], atol=1e-4, rtol=0)


def test_detections_match_the_published_code(
    inputs: dict[str, Any], expected: dict[str, Tensor], full: tuple[list[list[Detection]], Predictions]
) -> None:
    for (i, j), found in zip(PAIRS, full[0]):
        key = f"full.{i}.{j}."
        assert [d.phrase for d in found] == inputs["kept_phrases"][key + "kept_phrases"]
        boxes, scores = torch.tensor([d.box for d in found]), torch.tensor([d.score for d in found])
        assert_close(boxes, expected[key + "kept_boxes_cxcywh"], atol=1e-4, rtol=0)
        assert_close(scores, expected[key + "kept_scores"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rules, name", [("strict", "rewards_strict"), ("original", "rewards_plain")])
def test_rewards_equal_those_of_the_published_code(
    folder: Path,
    images: list[Image.Image],
    inputs: dict[str, Any],
    full: tuple[list[list[Detection]], Predictions],
    rules: str,
    name: str,
) -> None:
    reward = GroundingDinoReward(folder, rules=rules, quirks="reference", batch_size=2)

    def recalled(shown: list[Image.Image], captions: list[Caption]) -> tuple[Tensor, Tensor]:
        rows = [full[1][image.width, len(caption.ids)] for image, caption in zip(shown, captions)]
        width = min(logits.shape[1] for logits, _ in rows)
        return torch.stack([logits[:, :width] for logits, _ in rows]), torch.stack([boxes for _, boxes in rows])

    reward.predict = recalled  # type: ignore[method-assign]
    tasks = [PromptRecord("a prompt", **task) for task in inputs["tasks"]]
    values = reward([image for image in images for _ in tasks], tasks * len(images))
    wanted = torch.tensor([inputs["rewards"][f"image{i}.{name}"] for i in range(len(images))]).flatten()
    assert values.dtype == torch.float32
    assert_close(values, wanted, atol=1e-6, rtol=0)


def test_batched_equals_one_by_one(
    small: GroundingDinoReward, images: list[Image.Image], records: list[PromptRecord]
) -> None:
    """Mixed sizes, captions of different lengths and a record without nouns, in batches of 1, 3 and 8."""
    rows = [(0, 0), (1, 1), (0, 1), (1, 0), (0, 1), (1, 1), (0, 0)]
    shown = [images[i] for i, _ in rows] + [images[0]]
    asked = [records[j] for _, j in rows] + [PromptRecord("beauty")]
    alone = [small.detect([image], [record])[0] for image, record in zip(shown, asked)]
    single = torch.cat([small([image], [record]) for image, record in zip(shown, asked)])
    assert sum(len(found) > 0 for found in alone) >= 4 and not alone[-1]
    for small.batch_size in (1, 3, 8):
        together = small.detect(shown, asked)
        for found, wanted in zip(together, alone):
            assert [d.phrase for d in found] == [d.phrase for d in wanted]
            for one, other in zip(found, wanted):
                assert_close(torch.tensor(one.box), torch.tensor(other.box), atol=1e-5, rtol=0)
                assert one.score == pytest.approx(other.score, abs=1e-5)
        assert torch.equal(small(shown, asked), single)


def test_padding_a_caption_leaves_its_row_as_it_is(
    small: GroundingDinoReward, images: list[Image.Image], records: list[PromptRecord]
) -> None:
    long, short = (small.caption(record) for record in records)
    with small.placement():
        logits, boxes = small.predict([images[0]] * 2, [short, long])
        alone, alone_boxes = small.predict([images[0]], [short])
    assert_close(logits[0, :, : len(short.ids)], alone[0], atol=2e-5, rtol=0)  # logits of size 10
    assert_close(boxes[0], alone_boxes[0], atol=1e-5, rtol=0)


def test_a_phrase_of_three_words_keeps_its_name_unless_the_published_fault_is_wanted(
    small: GroundingDinoReward, published: GroundingDinoReward, records: list[PromptRecord]
) -> None:
    assert small.caption(records[0]).names == ["apple", "red cup", "hot air balloon"]
    assert published.caption(records[0]).names == ["apple", "red cup", "hot balloon"]


def test_images_need_not_be_rgb(small: GroundingDinoReward, images: list[Image.Image], records) -> None:
    grey = images[0].convert("L")
    assert small.detect([grey], records[:1]) == small.detect([grey.convert("RGB")], records[:1])


def test_applies_only_where_there_is_something_to_find(small: GroundingDinoReward, images: list[Image.Image]) -> None:
    records = [PromptRecord("a dog", nouns=["dog"]), PromptRecord("beauty")]
    assert small.applies(records).tolist() == [True, False]
    small.predict = None  # type: ignore[assignment,method-assign]  # no pass for what the image cannot change
    assert small([images[0]], records[1:]).tolist() == [1.0]
    assert small([], []).shape == (0,)


def test_too_long_a_caption_is_an_error_that_names_the_prompt(
    small: GroundingDinoReward, images: list[Image.Image]
) -> None:
    record = PromptRecord("a crowd", nouns=["dog"] * 150)
    with pytest.raises(ValueError, match=r"prompt 'a crowd' make \d+ tokens, but the detector reads at most 256"):
        small([images[0]], [record])


def test_wrong_settings_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rules='lenient'"):
        GroundingDinoReward(tmp_path, rules="lenient")
    with pytest.raises(ValueError, match="quirks='none'"):
        GroundingDinoReward(tmp_path, quirks="none")
    with pytest.raises(ValueError, match="batch_size=0"):
        GroundingDinoReward(tmp_path, batch_size=0)
    with pytest.raises(FileNotFoundError, match=r"egrpo\.download what=rewards"):
        GroundingDinoReward(tmp_path)
