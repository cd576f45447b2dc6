"""What the four neural rewards do alike, with the tiny models that the package carries."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from egrpo.rewards.gdino import GroundingDinoReward
from egrpo.rewards.git import GITReward
from egrpo.rewards.hps import HPSReward
from egrpo.rewards.orm import ORMReward
from egrpo.types import PromptRecord

CLASSES: dict[str, Any] = {"hps": HPSReward, "git": GITReward, "gdino": GroundingDinoReward, "orm": ORMReward}
NOUNS = (["red circle"], ["striped cross", "square"], ["blue triangle"], ["circle", "red square", "cross"])
RECORDS = [PromptRecord(f"a photo of {' and '.join(nouns)}", nouns=nouns) for nouns in NOUNS]


def noise(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    shape, stream = (size[1], size[0], 3), torch.manual_seed(seed)
    return Image.fromarray(torch.randint(256, shape, dtype=torch.uint8, generator=stream).numpy())


IMAGES = [noise(seed) for seed in range(len(RECORDS))]


def shipped(name: str, **settings: Any) -> Any:
    return CLASSES[name](f"package:egrpo/shapes/assets/rewards/{name}", **settings)


@pytest.fixture
def bfloat16_default() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def scores_of(name: str) -> torch.Tensor:
    reward = shipped(name, **({"threshold": 0.02} if name == "gdino" else {}))
    odd = [0.481, 0.457, 0.408]  # no bfloat16 holds these
    if name == "hps":
        reward.mean = reward.std = odd
    if name == "orm":
        reward.processor.image_mean = reward.processor.image_std = odd
    return reward(IMAGES, RECORDS)


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return {name: scores_of(name) for name in CLASSES}


@pytest.mark.parametrize("name", CLASSES)
def test_scores_do_not_depend_on_the_default_type(plain, bfloat16_default, name: str):
    scores = scores_of(name)
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 1
    assert torch.equal(scores, plain[name])


def test_published_draws_do_not_depend_on_the_default_type(bfloat16_default):
    """0.4999 is 0.5 in bfloat16: between yes and no alike, the draw would fall on the other token."""
    reward = shipped("orm", mode="published")
    logits = torch.full((1, len(reward.tokenizer)), -1e4, dtype=torch.float32)
    first, second = sorted([reward.yes, reward.tokenizer.convert_tokens_to_ids("a")])
    logits[0, [first, second]] = 0
    uncut = SimpleNamespace(top_k=0, top_p=1.0)
    score = reward.sampled_scores(logits, [0.4999], uncut).item()
    assert score == (1.0 if first == reward.yes else 0.0)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one_is_refused_when_built(name: str, size: int):
    with pytest.raises(ValueError, match=f"batch_size={size} of a reward: give at least 1"):
        shipped(name, batch_size=size)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("images, records", [(2, 3), (3, 2), (0, 1)])
def test_every_image_needs_its_record(name: str, images: int, records: int):
    with pytest.raises(ValueError, match=f"a reward got {images} images and {records} records"):
        shipped(name)(IMAGES[:images], RECORDS[:records])


@pytest.mark.parametrize("name", CLASSES)
def test_half_a_surrogate_pair_gets_a_score_and_leaves_others_alone(name: str):
    reward = shipped(name)
    hostile = PromptRecord("\ud83d a circle", nouns=["\ud83d", "circle \ude00", "circle"])
    scores = reward(IMAGES[:2], [hostile, RECORDS[1]])
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[1:], reward(IMAGES[1:2], RECORDS[1:2]), atol=1e-5, rtol=0)


def test_spans_hold_where_half_a_surrogate_pair_stood():
    reward = shipped("gdino")
    odd = reward.caption(PromptRecord("", nouns=["\ud83d circle", "red cross"]))
    marked = reward.caption(PromptRecord("", nouns=["? circle", "red cross"]))
    assert torch.equal(odd.ids, marked.ids) and torch.equal(odd.positive_map, marked.positive_map)
    assert odd.names == ["\ud83d circle", "red cross"]  # as the rules will look for them


@pytest.mark.parametrize(
    "size, resized", [((300, 100), "48 x 16"), ((48, 1), "48 x 1"), ((1, 48), "1 x 48"), ((48, 300), "8 x 48")]
)
def test_an_image_too_narrow_for_the_detector_is_named(size: tuple[int, int], resized: str):
    words = rf"an image of {size[0]} x {size[1]} pixels .* resized to {resized} .* fewer positions .* 16 queries"
    with pytest.raises(ValueError, match=words):
        shipped("gdino")([IMAGES[0], noise(0, size)], RECORDS[:2])


def test_other_failures_of_the_detector_keep_their_words():
    reward = shipped("gdino")

    def broken(*args: Any) -> None:
        raise RuntimeError("out of memory")

    reward.placement.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        reward(IMAGES[:1], RECORDS[:1])
