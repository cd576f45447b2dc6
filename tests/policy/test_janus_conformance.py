"""The converted tiny Janus under this project's policy gives the numbers of the published code, to its tolerances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

from egrpo.conversion import janus
from egrpo.policy import JanusPolicy, sample_image_tokens
from egrpo.policy.backbone import Backbone
from egrpo.policy.drawing import Drawing
from egrpo.policy.layout import positions_of, unconditional
from egrpo.policy.loading import begin_of_image_token
from egrpo.policy.sampling import draw_text_tokens, pad_token
from egrpo.policy.scoring import score_image, score_text
from egrpo.types import Segment

LOGITS, PIXELS, LOGPS, ENTROPY = 1e-4, 1e-4, 1e-4, 1e-5
ALONE = {"unequal_alone": "unequal"}  # whose prompts it takes


@pytest.fixture(scope="module")
def pack(shared: Path) -> Path:
    return shared / "conformance" / "janus_original_tiny"


@pytest.fixture(scope="module")
def model(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The converted checkpoint; its pack has no tokenizer, so it is loaded without."""
    target = tmp_path_factory.mktemp("janus_native")
    janus.convert(pack, target)
    return JanusForConditionalGeneration.from_pretrained(target).eval()


@pytest.fixture(scope="module")
def backbone(model: Any) -> Backbone:
    return Backbone.of(model)


@pytest.fixture(scope="module")
def forward(pack: Path) -> dict[str, Tensor]:
    return load_file(pack / "forward.safetensors")


@pytest.fixture(scope="module")
def sampling(pack: Path) -> dict[str, Tensor]:
    return load_file(pack / "sampling.safetensors")


@pytest.fixture(scope="module")
def logps(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "conformance" / "text_image_logps" / "data.safetensors")


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@torch.no_grad()
def test_language_model_and_both_heads(backbone: Backbone, forward: dict[str, Tensor]) -> None:
    text = backbone.embed_text(forward["llm.input_ids"])
    image = backbone.embed_image(forward["llm.image_codes"])
    close(text, forward["llm.text_embeds"], LOGITS)
    close(image, forward["llm.gen_img_embeds"], LOGITS)
    mask = forward["llm.attention_mask"].bool()
    hidden = backbone.hidden(torch.cat([text, image], dim=1), mask, positions_of(mask, "published"))
    close(hidden[mask], forward["llm.last_hidden_state"][mask], LOGITS)
    close(backbone.lm_head(hidden[:, :10])[mask[:, :10]], forward["llm.lm_head_logits"][mask[:, :10]], LOGITS)
    close(backbone.generation_head(hidden[:, 9:])[mask[:, 9:]], forward["llm.gen_head_logits"][mask[:, 9:]], LOGITS)


@torch.no_grad()
def test_vision_tower_and_aligner(model: Any, forward: dict[str, Tensor]) -> None:
    found = model.model.get_image_features(forward["vision.pixel_values"])
    close(found.last_hidden_state, forward["vision.features"], LOGITS)
    close(found.pooler_output, forward["vision.aligned"], LOGITS)
    ids = forward["vision.input_ids"]
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], found.pooler_output)
    close(embeds, forward["vision.inputs_embeds"], LOGITS)
    seen = model(input_ids=ids, pixel_values=forward["vision.pixel_values"], logits_to_keep=4).logits
    close(seen, forward["vision.lm_head_logits"], LOGITS)


@torch.no_grad()
def test_pixels(model: Any, forward: dict[str, Tensor]) -> None:
    codes = forward["vq.codes"]
    close(model.decode_image_tokens(codes), forward["vq.pixels"].permute(0, 2, 3, 1), PIXELS)
    assert forward["vq.pixels"].abs().max() > 1  # else nothing would be clamped
    assert at_most_one_level(decode(model, codes), forward["vq.uint8"])


@torch.no_grad()
def test_codes_of_an_image(model: Any, forward: dict[str, Tensor]) -> None:
    found = model.model.vqmodel.encode(forward["vision.pixel_values"]).image_tokens
    assert torch.equal(found.reshape(2, -1), forward["vq.encode_codes"])


def decode(model: Any, codes: Tensor) -> Tensor:
    """As the policy does it."""
    return JanusPolicy.decode(_Bare(model), codes)  # type: ignore[arg-type]


class _Bare:
    """What `JanusPolicy.decode` needs of a policy, for a model without a tokenizer."""

    decode_batch, decode_evenly = 2, False

    def __init__(self, model: Any) -> None:
        self.model = self.rollout_model = model


def at_most_one_level(found: Tensor, wanted: Tensor) -> bool:
    off = (found.int() - wanted.int()).abs()
    return found.dtype == torch.uint8 and int(off.max()) <= 1 and float((off > 0).float().mean()) < 1e-3


@pytest.mark.parametrize("cfg_weight", [1, 5])
@pytest.mark.parametrize(
    ("case", "padding"),
    [("equal", "exact"), ("equal", "published"), ("unequal", "published"), ("unequal_alone", "exact")],
)
def test_greedy_image_tokens(
    model: Any, backbone: Backbone, sampling: dict[str, Tensor], case: str, padding: str, cfg_weight: int
) -> None:
    prompts = ALONE.get(case, case)  # exact padding gives for every row of the batch what the prompt gives alone
    ids, mask = sampling[f"{prompts}.prompt_ids"], sampling[f"{prompts}.attention_mask"].bool()
    assert (ids[:, -1] == begin_of_image_token(model, None)).all() and (ids[~mask] == pad_token(model)).all()
    found = sample_image_tokens(model, ids, mask, cfg_weight=cfg_weight, greedy=True, padding=padding)
    assert torch.equal(found, sampling[f"{case}.cfg{cfg_weight}.tokens"])
    if case == "equal" and cfg_weight == 5:
        assert at_most_one_level(decode(model, found), sampling["equal.cfg5.uint8"])


@torch.no_grad()
@pytest.mark.parametrize("cfg_weight", [1, 5])
@pytest.mark.parametrize("case", ["equal", "unequal"])
def test_first_logits(model: Any, backbone: Backbone, sampling: dict[str, Tensor], case: str, cfg_weight: int) -> None:
    ids, mask = sampling[f"{case}.prompt_ids"], sampling[f"{case}.attention_mask"].bool()

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = backbone.hidden(backbone.embed_text(ids), mask, positions_of(mask, "published"))
        return backbone.generation_head(hidden[:, -1])

    conditional = logits(ids, mask)
    bare = logits(*unconditional(ids, mask, pad_token(model), "published"))
    close(bare + cfg_weight * (conditional - bare), sampling[f"{case}.cfg{cfg_weight}.first_step_logits"], LOGITS)


def test_the_two_paddings_differ_but_for_the_longest_prompt(sampling: dict[str, Tensor]) -> None:
    mask = sampling["unequal.attention_mask"].bool()
    same = [torch.equal(a, b) for a, b in zip(sampling["unequal.cfg5.tokens"], sampling["unequal_alone.cfg5.tokens"])]
    assert same == mask.all(dim=1).tolist() and 0 < sum(same) < len(same)


def test_an_image_of_576_codes(model: Any, sampling: dict[str, Tensor]) -> None:
    ids = sampling["long24.prompt_ids"]
    found = sample_image_tokens(model, ids, torch.ones_like(ids), cfg_weight=5, greedy=True, num_image_tokens=576)
    assert torch.equal(found, sampling["long24.cfg5.tokens"])


def segment(ids: Tensor, mask: Tensor, tokens: Tensor, counted: Tensor) -> Segment:
    nothing = torch.zeros(tokens.shape)
    return Segment(ids, mask.bool(), tokens, counted.bool(), nothing, nothing)


@torch.no_grad()
@pytest.mark.parametrize(("case", "padding"), [("image", "published"), ("image_alone", "exact")])
def test_image_scores(backbone: Backbone, logps: dict[str, Tensor], case: str, padding: str) -> None:
    tokens = logps["image.token_ids"]
    drawn = segment(logps["image.prompt_ids"], logps["image.prompt_mask"], tokens, torch.ones_like(tokens))
    found, entropy = score_image(backbone, drawn, padding=padding, chunk_size=100)
    close(found, logps[f"{case}.per_token_logps"], LOGPS)
    close(entropy, logps[f"{case}.per_token_entropy"], ENTROPY)
    other = {"image": "image_alone", "image_alone": "image"}[case]
    assert (found - logps[f"{other}.per_token_logps"]).abs().max() > 0.5  # the modes cannot be confused


@torch.no_grad()
@pytest.mark.parametrize("case", ["text", "text_alone"])
def test_text_scores(backbone: Backbone, logps: dict[str, Tensor], case: str) -> None:
    counted = logps["text.completion_mask"].bool()
    drawn = segment(logps["text.prompt_ids"], logps["text.prompt_mask"], logps["text.completion_ids"], counted)
    found, entropy = score_text(backbone, drawn)
    close(found[counted], logps[f"{case}.per_token_logps"][counted], LOGPS)
    close(entropy[counted], logps[f"{case}.per_token_entropy"][counted], ENTROPY)
    assert not found[~counted].any() and not entropy[~counted].any()


def test_completion_masks_end_with_the_first_end_of_sequence(model: Any, logps: dict[str, Tensor]) -> None:
    eos = model.config.text_config.eos_token_id
    for tokens, counted in zip(logps["text.completion_ids"], logps["text.completion_mask"]):
        ends = (tokens == eos).nonzero().flatten().tolist()
        assert int(counted.sum()) == (ends[0] + 1 if ends else len(tokens))


def test_greedy_text(model: Any, backbone: Backbone, logps: dict[str, Tensor]) -> None:
    wanted, eos = logps["text.greedy_completion_ids"], model.config.text_config.eos_token_id
    ids, mask = logps["text.prompt_ids"], logps["text.prompt_mask"].bool()
    found = draw_text_tokens(backbone, ids, mask, None, max_tokens=wanted.shape[1], eos=eos, how=Drawing(greedy=True))
    width = found.tokens.shape[1]
    assert torch.equal(found.tokens, wanted[:, :width]) and (wanted[:, width:] == eos).all()
    assert found.truncated.tolist() == [eos not in row for row in wanted.tolist()]
