"""The scorers on small real models: against plain forward passes, batch against single, and through a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering, CLIPModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from egrpo.benchmarks.blip_vqa import BlipVQA
from egrpo.benchmarks.clip_score import CLIPScore, ColorNamer, cut
from egrpo.benchmarks.detectors import Detector, GenEvalVerdict, SpatialScore
from egrpo.benchmarks.language import RuleParser
from egrpo.rewards.detection_rules import Detection
from egrpo.types import PromptRecord
from tests.benchmarks.pieces import COMPLEX, benchmark, fill, t2i_prompts

ONE_BY_ONE = 2e-6  # a batch sums in another order
CLIP = "package:egrpo/shapes/assets/rewards/hps"
DETECTOR = "package:egrpo/shapes/assets/rewards/gdino"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?", "a", "the", "red", "green", "cup", "bench"]
PROMPTS = ["a red cup and a green bench", "a bench", "running quickly", "the red bench on a green cup and the cup"]


def noise(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    stream = torch.manual_seed(seed)
    return Image.fromarray(torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=stream).numpy())


IMAGES = [noise(seed, (40 + 8 * (seed % 2), 40)) for seed in range(len(PROMPTS))]
RECORDS = [PromptRecord(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    """Random weights; the vocabulary has two rows more than the tokenizer, as the published checkpoint."""
    folder = tmp_path_factory.mktemp("blip")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS) + 2, "encoder_hidden_size": 16, "max_position_embeddings": 40, **sizes}
    marks = {"bos_token_id": len(WORDS), "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    config = BlipConfig(text_config={**text, **marks}, vision_config={"image_size": 24, "patch_size": 8, **sizes})
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def test_blip_vqa_is_the_product_over_chunks_of_plain_forward_passes(blip):
    scorer = BlipVQA(blip, parser="rules")
    model = BlipForQuestionAnswering.from_pretrained(blip).eval()
    yes, no, dec, enc = WORDS.index("yes"), WORDS.index("no"), len(WORDS), len(WORDS) + 1

    def ask(image: Image.Image, text: str) -> float:
        ids = torch.tensor([[enc, *scorer.tokenizer(text, add_special_tokens=False).input_ids, 3]])
        pixels = scorer.processor([image], return_tensors="pt").pixel_values
        with torch.inference_mode():
            seen = model.vision_model(pixel_values=pixels).last_hidden_state
            asked = model.text_encoder(
                input_ids=ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=seen
            ).last_hidden_state
            logits = model.text_decoder(input_ids=torch.tensor([[dec]]), encoder_hidden_states=asked).logits[0, 0]
        p = logits.softmax(-1)
        return (p[yes] / (p[yes] + p[no])).item()

    asked = [["a red cup?", "a green bench?"], ["a bench?"], [], ["the red bench?", "a green cup?", "the cup?"]]
    expected = [torch.tensor([ask(image, q) for q in row]).prod().item() for image, row in zip(IMAGES, asked)]
    scores = scorer(IMAGES, RECORDS)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=ONE_BY_ONE, rtol=0)
    assert scores[2] == 1.0  # no noun chunk, as official
    assert len({round(x, 4) for x in expected}) == 4 and all(0 < x <= 1 for x in expected)
    assert "24 pixels" in scorer.note and "rules" in scorer.note


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_blip_vqa_batch_equals_single(blip, batch_size):
    singles = torch.cat([BlipVQA(blip, parser="rules")([i], [r]) for i, r in zip(IMAGES, RECORDS)])
    batch = BlipVQA(blip, parser="rules", batch_size=batch_size)(IMAGES, RECORDS)
    torch.testing.assert_close(batch, singles, atol=ONE_BY_ONE, rtol=0)


def test_blip_vqa_looks_at_eight_chunks_at_most(blip):
    many = " and ".join(["a cup"] * 12)
    scorer = BlipVQA(blip, parser="rules")
    once, eight = scorer([IMAGES[0]] * 2, [PromptRecord("a cup"), PromptRecord(many)]).tolist()
    assert eight == pytest.approx(once**8, rel=1e-4)


def test_clip_score_is_the_cosine_of_a_plain_forward_pass():
    scorer = CLIPScore(CLIP)
    model = CLIPModel.from_pretrained(scorer.placement.model.name_or_path).eval()
    for image, record, score in zip(IMAGES, RECORDS, scorer(IMAGES, RECORDS)):
        with torch.inference_mode():
            pixels = scorer.processor([image], return_tensors="pt").pixel_values
            ids = torch.tensor([scorer.tokenizer(record.prompt).input_ids])
            output = model(pixel_values=pixels, input_ids=ids)
        assert score.item() == pytest.approx((output.image_embeds @ output.text_embeds.T).item(), abs=ONE_BY_ONE)


def test_clip_score_batch_equals_single():
    scorer = CLIPScore(CLIP, batch_size=3)
    singles = torch.cat([scorer([i], [r]) for i, r in zip(IMAGES, RECORDS)])
    torch.testing.assert_close(scorer(IMAGES, RECORDS), singles, atol=ONE_BY_ONE, rtol=0)


def test_torchmetrics_takes_a_hundred_times_as_much():
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    scorer = CLIPScore(CLIP)

    class Model(torch.nn.Module):
        """What torchmetrics asks of a CLIP; transformers' own methods return objects by now."""

        config = scorer.placement.model.config

        def get_image_features(self, pixels):
            return scorer.placement.model.get_image_features(pixels).pooler_output

        def get_text_features(self, ids, mask):
            return scorer.placement.model.get_text_features(ids, mask).pooler_output

    def processor(images=None, text=None, **settings):
        if text is not None:
            return scorer.tokenizer(text, padding=True, return_tensors="pt")
        return scorer.processor([image.numpy() for image in images], return_tensors="pt")

    pictures = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in IMAGES]
    with torch.inference_mode():
        theirs, count = _clip_score_update(pictures, PROMPTS, Model(), processor)
    assert count == len(PROMPTS)
    torch.testing.assert_close(theirs, 100 * scorer(IMAGES, RECORDS), atol=2e-4, rtol=0)


def test_clip_score_without_adjectives_reads_fewer_words():
    plain, fewer = CLIPScore(CLIP), CLIPScore(CLIP, without_adjectives=True, parser="rules")
    bare = [PromptRecord("a cup and a bench")]
    torch.testing.assert_close(fewer(IMAGES[:1], RECORDS[:1]), plain(IMAGES[:1], bare), atol=ONE_BY_ONE, rtol=0)


def test_a_prompt_beyond_clips_context_is_named():
    with pytest.raises(ValueError, match=r"the prompt 'cup cup .* tokens, and CLIP reads 77: shorten it"):
        CLIPScore(CLIP)([IMAGES[0]] * 2, [RECORDS[0], PromptRecord("cup " * 100)])


def test_a_colour_is_the_nearest_description():
    clip = CLIPScore(CLIP)
    namer = ColorNamer(clip, ("red", "green", "blue"))
    cuts = IMAGES[:3]
    with clip.placement():
        vectors = clip.image_vectors(cuts)
        scores = []
        for color in ("red", "green", "blue"):
            texts = [
                f"a photo of a {color} circle",
                f"a photo of a {color}-colored circle",
                f"a photo of a {color} object",
            ]
            mean = clip.text_vectors(texts).mean(0)
            scores.append(vectors @ (mean / mean.norm()))
    best = torch.stack(scores, dim=1).argmax(1).tolist()
    assert namer(cuts, "circle") == [("red", "green", "blue")[i] for i in best]
    assert namer([], "circle") == []


@pytest.mark.parametrize(
    "box, size", [((2.2, 3.9, 9.6, 8.4), (8, 5)), ((-5, -5, 99, 99), (20, 10)), ((19.9, 9.9, 19.95, 9.95), (1, 1))]
)
def test_cut_outs_lie_within_the_image(box, size):
    assert cut(noise(0, (20, 10)), box).size == size


def drawing(*things: tuple[str, tuple[int, int]]) -> Image.Image:
    """Shapes of the shapes world by their RGB masks, on its background."""
    from egrpo.shapes.atlas import CELL, RGB, SIDE, shape_mask

    image = Image.new("RGB", (SIDE, SIDE), (235, 235, 235))
    for name, (x, y) in things:
        color, shape = name.split()
        mask = shape_mask(shape)
        assert max(mask.shape) <= CELL
        image.paste(tuple(RGB[color]), (x, y), Image.fromarray((mask * 255).astype("uint8")))
    return image


LEFT, RIGHT = (0, 16), (32, 16)


@pytest.fixture(scope="module")
def drawn() -> Image.Image:
    return drawing(("red circle", LEFT), ("blue triangle", RIGHT))


def test_the_detector_finds_what_is_drawn_in_pixels(drawn):
    (found,) = Detector(DETECTOR)([drawn], [["red circle", "blue triangle", "green cross"]])
    assert [len(found[name]) for name in ("red circle", "blue triangle", "green cross")] == [1, 1, 0]
    left, right = found["red circle"][0].box, found["blue triangle"][0].box
    assert 0 <= left[0] < left[2] <= 24 <= right[0] < right[2] <= 48


def test_of_what_is_found_twice_the_surest_stays(drawn, monkeypatch):
    detector = Detector(DETECTOR)
    boxes = [([0.3, 0.5, 0.2, 0.2], 0.5), ([0.31, 0.5, 0.2, 0.2], 0.9), ([0.7, 0.5, 0.2, 0.2], 0.7)]
    twice = [Detection("circle", box, score) for box, score in boxes]
    monkeypatch.setattr(detector.model, "detect", lambda images, records: [twice])
    (found,) = detector([drawn], [["circle"]])
    assert [f.score for f in found["circle"]] == [0.9, 0.7]
    assert found["circle"][0].box == pytest.approx((0.21 * 48, 0.4 * 48, 0.41 * 48, 0.6 * 48))


def test_spatial_scores_follow_the_drawing(drawn):
    scorer = SpatialScore(DETECTOR, parser="rules")
    prompts = ["a circle on the left of a triangle", "a circle on the right of a triangle", "a cross near a triangle"]
    scores = scorer([drawn] * 3, [PromptRecord(prompt) for prompt in prompts]).tolist()
    (found,) = scorer.detector([drawn], [["circle", "triangle"]])
    sure = [found[name][0].score for name in ("circle", "triangle")]
    assert scores == pytest.approx([0.5 + sum(sure) / 4, 0.0, 0.0], abs=1e-5)


def geneval(tag: str, *include: dict, exclude: tuple = ()) -> PromptRecord:
    return PromptRecord("", extra={"tag": tag, "include": list(include), "exclude": list(exclude)})


def test_geneval_verdicts_follow_the_drawing(drawn):
    scorer = GenEvalVerdict(DETECTOR, clip=CLIP)
    circle, triangle = {"class": "circle", "count": 1}, {"class": "triangle", "count": 1}
    cases = [
        (geneval("single_object", circle), 1),
        (geneval("two_object", circle, {"class": "cross", "count": 1}), 0),
        (geneval("counting", {"class": "circle", "count": 2}), 0),
        (geneval("counting", circle, exclude=({"class": "circle", "count": 1},)), 0),
        (geneval("position", circle, {**triangle, "position": ["right of", 0]}), 1),
        (geneval("position", circle, {**triangle, "position": ["left of", 0]}), 0),
    ]
    records = [record for record, _ in cases]
    scores = scorer([drawn] * len(cases), records)
    assert scores.tolist() == [right for _, right in cases]
    for record, score in zip(records, scores.tolist()):
        assert scorer([drawn], [record]).tolist() == [score]
    color = scorer.colors([cut(drawn, scorer.detector([drawn], [["circle"]])[0]["circle"][0].box)], "circle")[0]
    asked = [geneval("colors", {**circle, "color": name}) for name in (color, "another")]
    assert scorer([drawn] * 2, asked).tolist() == [1, 0]


def test_thresholds_of_counting_are_its_own(drawn):
    records = [geneval(tag, {"class": "circle", "count": 1}) for tag in ("single_object", "counting")]
    assert GenEvalVerdict(DETECTOR, clip=CLIP, counting_threshold=0.999999)([drawn] * 2, records).tolist() == [1, 0]
    assert GenEvalVerdict(DETECTOR, clip=CLIP, threshold=0.999999)([drawn] * 2, records).tolist() == [0, 1]


def test_a_scorer_without_a_model_says_where_to_put_one(tmp_path):
    for make in (BlipVQA, CLIPScore):
        with pytest.raises(ValueError, match=r"no model in .*benchmark\.scorers\.NAME\.reward\.path="):
            make(tmp_path)


def test_t2i_compbench_is_scored_with_its_stand_ins_named(blip, tmp_path):
    prompts = t2i_prompts(tmp_path / "p", color=PROMPTS[:2], complex=COMPLEX, numeracy=["two cups"])
    (prompts / "complex_val_spatial.txt").write_text(COMPLEX[0] + "\n")
    (prompts / "complex_val_action.txt").write_text(COMPLEX[1] + "\n")
    paths = {"blip_vqa": blip, "clip": CLIP, "clip_of_complex": CLIP, "spatial": DETECTOR}
    of = benchmark(
        "t2i_compbench",
        f"benchmark.prompts={prompts}",
        "benchmark.images_per_prompt=2",
        *[f"benchmark.scorers.{name}.reward.path={path}" for name, path in paths.items()],
        *[f"benchmark.scorers.{name}.reward.parser=rules" for name in ("blip_vqa", "spatial", "clip_of_complex")],
    )
    folder = fill(tmp_path / "out", of)
    results = {result.category: result for result in of.score(folder).results}
    assert set(results) == {"color", "complex"}  # numeracy is exported and read back only
    assert results["color"].images == 4 and "chunks by rules" in results["color"].stand_in
    for text in ("GroundingDINO in the place of UniDet", "chunks by rules", "adjectives by rules"):
        assert text in results["complex"].stand_in
    items = [item for item in of.items() if item.category == "complex"]
    blips, spatials, clips = (of.image_scores(folder, n, items) for n in ("blip_vqa", "spatial", "clip_of_complex"))
    image = [(blips[0] + spatials[0]) / 2, (blips[2] + clips[2]) / 2, (blips[4] + spatials[4] + clips[4]) / 3]
    assert list(results["complex"].values.values()) == pytest.approx(
        [(image[0] + (blips[1] + spatials[1]) / 2) / 2, (image[1] + (blips[3] + clips[3]) / 2) / 2,
         (image[2] + (blips[5] + spatials[5] + clips[5]) / 3) / 2]
    )  # fmt: skip
    (prompts / "complex_val_action.txt").unlink()
    with pytest.raises(ValueError, match=r"3-in-1 needs complex_val_action\.txt"):
        of.score(folder)


def test_shapes_are_scored_by_the_oracle(tmp_path):
    records = benchmark("shapes").items()[:3]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(item.record.to_dict()) + "\n" for item in records))
    of = benchmark("shapes", f"benchmark.prompts={path}", "benchmark.batch_size=2")
    for number, item in enumerate(of.items()):
        image = drawing(("blue circle", LEFT)) if number == 1 else drawing()
        of.write_image(tmp_path / "out", item, 0, image)
    strict = {r.category: r for r in of.score(tmp_path / "out").results if r.method == "oracle, strictly right"}
    assert list(strict["all"].values.values()) == [0.0, 1.0, 0.0]  # the second asks for a blue circle
    assert strict["all"].stand_in == "" and strict["unseen_prompt"].images == 3


def test_rules_find_chunks_and_nouns():
    parser = RuleParser()
    assert parser.nouns("a cat on side of a table") == ["cat", "side", "table"]
