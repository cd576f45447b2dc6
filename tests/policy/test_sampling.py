from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from egrpo.policy import capture, fused, sample_image_tokens
from egrpo.policy.adapter import add_lora
from egrpo.policy.backbone import Backbone
from egrpo.policy.capture import Steps
from egrpo.policy.drawing import Drawing
from egrpo.policy.layout import left_pack, pad_rows, positions_of, unconditional
from egrpo.policy.sampling import draw_image_tokens, draw_text_tokens
from tests.policy import naive
from tests.policy.scripted import Scripted

BOI, PAD, EOS = 4, 3, 2
GREEDY = Drawing(greedy=True)
PROMPTS = [[1, 20, 21, 22, 23, 24, 25, 26], [1, 30, 31], [1, 40, 41, 42, 43]]


def right_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = pad_rows(prompts, PAD, left=False)
    last = torch.full((len(prompts), 1), BOI)
    return torch.cat([ids, last], 1), torch.cat([mask, last.bool()], 1)


def uniforms(count: int) -> torch.Tensor:
    return torch.rand(count, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_left_pack_literal():
    ids = torch.tensor([[1, 5, 3, 3, 4], [3, 1, 3, 3, 4]])
    mask = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 0, 1]]).bool()
    packed, kept = left_pack(ids, mask)
    assert packed.tolist() == [[1, 5, 4], [3, 1, 4]]
    assert kept.tolist() == [[True, True, True], [False, True, True]]
    assert positions_of(kept).tolist() == [[0, 1, 2], [0, 0, 1]]
    assert positions_of(mask, "published").tolist() == [[0, 1, 2, 3, 4]] * 2


def test_unconditional_rows_literal():
    ids, mask = torch.tensor([[1, 5, 6, 4], [9, 1, 7, 4]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    bare, kept = unconditional(ids, mask, PAD, "exact")
    assert bare.tolist() == [[1, 3, 3, 4], [3, 1, 3, 4]] and torch.equal(kept, mask)
    bare, kept = unconditional(ids, mask, PAD, "published")
    assert bare.tolist() == [[1, 3, 3, 4], [9, 3, 3, 4]] and kept.all()


@pytest.mark.parametrize("cfg_weight", [1.0, 3.0])
@pytest.mark.parametrize("greedy", [True, False])
def test_exact_result_does_not_depend_on_the_batch(model, cfg_weight: float, greedy: bool):
    u = uniforms(3)
    ids, mask = right_padded(PROMPTS)
    settings = {"num_tokens": 16, "pad": PAD, "how": Drawing(greedy=greedy, cfg_weight=cfg_weight)}
    together = draw_image_tokens(Backbone.of(model), ids, mask, None if greedy else u, **settings)
    for i, prompt in enumerate(PROMPTS):
        alone = torch.tensor([[*prompt, BOI]])
        drawn = draw_image_tokens(
            Backbone.of(model), alone, torch.ones_like(alone).bool(), None if greedy else u[i : i + 1], **settings
        )
        assert torch.equal(drawn.tokens[0], together.tokens[i])
        torch.testing.assert_close(drawn.logps[0], together.logps[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(drawn.entropy[0], together.entropy[i], atol=1e-5, rtol=0)
        slow = naive.sample(
            model,
            alone,
            torch.ones_like(alone),
            cfg_weight=cfg_weight,
            pad=PAD,
            uniforms=None if greedy else u[i : i + 1],
        )
        assert torch.equal(drawn.tokens, slow)


def test_exact_does_not_see_where_padding_stands(model):
    ids, mask = right_padded(PROMPTS)
    left = left_pack(ids, mask)
    hole = (
        torch.cat([ids[:, :1], ids[:, :1] * 0 + 77, ids[:, 1:]], 1),
        torch.cat([mask[:, :1], ~mask[:, :1], mask[:, 1:]], 1),
    )
    results = [sample_image_tokens(model, *x, cfg_weight=3, greedy=True) for x in ((ids, mask), left, hole)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("cfg_weight", [1.0, 3.0])
@pytest.mark.parametrize("greedy", [True, False])
def test_published_equals_the_plain_loop(model, cfg_weight: float, greedy: bool):
    u = None if greedy else uniforms(3)
    ids, mask = right_padded(PROMPTS)
    settings = {"num_tokens": 16, "pad": PAD, "how": Drawing(greedy=greedy, cfg_weight=cfg_weight)}
    drawn = draw_image_tokens(Backbone.of(model), ids, mask, u, padding="published", **settings).tokens
    assert torch.equal(drawn, naive.sample(model, ids, mask, cfg_weight=cfg_weight, pad=PAD, uniforms=u))
    exact = draw_image_tokens(Backbone.of(model), ids, mask, u, **settings).tokens
    assert torch.equal(drawn[0], exact[0])  # the longest prompt has no holes
    assert not torch.equal(drawn[1], exact[1]) and not torch.equal(drawn[2], exact[2])


def test_native_generate_agrees_on_a_single_prompt(model):
    model.generation_config.update(bos_token_id=1, pad_token_id=PAD, eos_token_id=None, do_sample=False)
    model.generation_config.generation_kwargs = {"boi_token_id": BOI}
    ids = torch.tensor([[*PROMPTS[0], BOI]])
    mask = torch.ones_like(ids)
    native = model.generate(
        ids, attention_mask=mask, generation_mode="image", do_sample=False, guidance_scale=3.0, max_length=64
    )
    assert torch.equal(native, sample_image_tokens(model, ids, mask, cfg_weight=3.0, greedy=True))


def test_generator_and_temperature(model):
    ids, mask = right_padded(PROMPTS)

    def sample(seed: int, **settings) -> torch.Tensor:
        source = torch.Generator().manual_seed(seed)
        return sample_image_tokens(model, ids, mask, cfg_weight=2.0, generator=source, **settings)

    assert sample(0).shape == (3, 16) and torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    greedy = sample_image_tokens(model, ids, mask, cfg_weight=2.0, greedy=True)
    assert torch.equal(sample(0, temperature=1e-4), greedy)
    assert sample(0, num_image_tokens=5).shape == (3, 5)


def test_faults_are_named(model):
    ids, mask = right_padded(PROMPTS)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        sample_image_tokens(model, ids, mask, cfg_weight=1, temperature=0)
    with pytest.raises(ValueError, match="padding must be one of"):
        sample_image_tokens(model, ids, mask, cfg_weight=1, padding="left")
    with pytest.raises(ValueError, match="must be a real one"):
        sample_image_tokens(model, ids[:, :-1], mask[:, :-1], cfg_weight=1)
    for config in (model.config.text_config, model.generation_config):
        config.pad_token_id = None
    with pytest.raises(ValueError, match="no pad token"):
        sample_image_tokens(model, ids, mask, cfg_weight=1)
    model.model.generation_head.vision_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        draw_image_tokens(Backbone.of(model), ids, mask, None, num_tokens=2, pad=PAD, how=Drawing(greedy=True))


def test_text_ends_at_the_first_end_of_sequence(model, monkeypatch):
    model.lm_head = Scripted([[50, EOS, 51, 52, 53], [60, 61, 62, EOS, 63], [EOS, 70, EOS, 71, 72]], monkeypatch)
    ids, mask = pad_rows(PROMPTS, PAD, left=True)
    drawn = draw_text_tokens(Backbone.of(model), ids, mask, None, max_tokens=5, eos=EOS, how=GREEDY)
    assert drawn.tokens.tolist() == [[50, 2, 2, 2], [60, 61, 62, 2], [2, 2, 2, 2]]  # four steps: all have ended
    assert drawn.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert model.lm_head.rows_run[:4] == [3, 3, 1, 1]  # rows that have ended are left out
    assert not drawn.truncated.any()
    assert (drawn.logps[~drawn.mask] == 0).all() and (drawn.entropy[~drawn.mask] == 0).all()


def test_text_that_never_ends_is_truncated(model, monkeypatch):
    model.lm_head = Scripted([[50, 51, 52, EOS], [60, 61, EOS, 62], [70, 71, 72, 73]], monkeypatch)
    ids, mask = pad_rows(PROMPTS, PAD, left=True)
    drawn = draw_text_tokens(Backbone.of(model), ids, mask, None, max_tokens=3, eos=EOS, how=GREEDY)
    assert drawn.tokens.tolist() == [[50, 51, 52], [60, 61, 2], [70, 71, 72]] and drawn.mask.all()
    assert drawn.truncated.tolist() == [True, False, True]


def test_text_does_not_depend_on_the_batch(model):
    u = uniforms(3)
    ids, mask = pad_rows(PROMPTS, PAD, left=True)
    together = draw_text_tokens(Backbone.of(model), ids, mask, u, max_tokens=16, eos=EOS, how=Drawing())
    for i, prompt in enumerate(PROMPTS):
        alone = torch.tensor([prompt])
        drawn = draw_text_tokens(
            Backbone.of(model),
            alone,
            torch.ones_like(alone).bool(),
            u[i : i + 1],
            max_tokens=16,
            eos=EOS,
            how=Drawing(),
        )
        count = drawn.tokens.shape[1]
        assert torch.equal(drawn.tokens[0], together.tokens[i, :count])
        torch.testing.assert_close(drawn.logps[0], together.logps[i, :count], atol=1e-5, rtol=0)
        assert not together.mask[i, count:].any()


@pytest.mark.parametrize("cfg_weight", [1.0, 3.0])
def test_static_tensors_draw_what_growing_ones_draw(model, cfg_weight: float, monkeypatch):
    monkeypatch.setattr(capture, "WIDTH", 4)  # several widths within a run
    backbone, static = Backbone.of(model), Steps("static")
    for prompts in (PROMPTS, [PROMPTS[1], PROMPTS[2], PROMPTS[2]]):  # the second time in the same tensors
        ids, mask = right_padded(prompts)
        for greedy, u in ((True, None), (False, uniforms(3))):
            settings = {"num_tokens": 16, "pad": PAD, "how": Drawing(greedy=greedy, cfg_weight=cfg_weight)}
            grown, still = (
                draw_image_tokens(backbone, ids, mask, u, **settings, steps=steps) for steps in (Steps("eager"), static)
            )
            assert torch.equal(grown.tokens, still.tokens)
            torch.testing.assert_close(grown.logps, still.logps, atol=1e-5, rtol=0)
            torch.testing.assert_close(grown.entropy, still.entropy, atol=1e-5, rtol=0)


def test_static_text_is_growing_text(model):
    u, (ids, mask) = uniforms(3), pad_rows(PROMPTS, PAD, left=True)
    settings = {"max_tokens": 16, "eos": 2, "how": Drawing()}
    model.lm_head.weight.data[EOS] *= 4  # some rows end
    grown, still = (
        draw_text_tokens(Backbone.of(model), ids, mask, u, **settings, steps=Steps(how)) for how in ("eager", "static")
    )
    assert torch.equal(grown.tokens, still.tokens) and torch.equal(grown.mask, still.mask)
    assert grown.mask.sum(dim=1).unique().numel() > 1
    torch.testing.assert_close(grown.logps, still.logps, atol=1e-5, rtol=0)


def test_what_is_kept_sees_new_weights(model):
    """An optimizer changes weights where they are; another model's are elsewhere."""
    steps, (ids, mask) = Steps("static"), right_padded(PROMPTS)
    settings = {"num_tokens": 16, "pad": PAD, "how": GREEDY}
    first = draw_image_tokens(Backbone.of(model), ids, mask, None, **settings, steps=steps)
    kept = steps._kept["image"][1]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    changed = draw_image_tokens(Backbone.of(model), ids, mask, None, **settings, steps=steps)
    assert steps._kept["image"][1] is kept and not torch.equal(first.tokens, changed.tokens)
    assert torch.equal(changed.tokens, draw_image_tokens(Backbone.of(model), ids, mask, None, **settings).tokens)
    other = copy.deepcopy(model)
    draw_image_tokens(Backbone.of(other), ids, mask, None, **settings, steps=steps)
    assert steps._kept["image"][1] is not kept and not steps.fell_back


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("cfg_weight", [1.0, 3.0])
@pytest.mark.parametrize("decoding", ["captured", "compiled"])
def test_captured_steps_draw_what_eager_ones_draw(model, cfg_weight: float, decoding: str, monkeypatch):
    monkeypatch.setattr(capture, "WIDTH", 8)
    model, captured = model.cuda(), Steps(decoding)
    for prompts in (PROMPTS, PROMPTS[::-1]):
        ids, mask = (x.cuda() for x in right_padded(prompts))
        for greedy, u in ((True, None), (False, uniforms(3).cuda())):
            settings = {"num_tokens": 16, "pad": PAD, "how": Drawing(greedy=greedy, cfg_weight=cfg_weight)}
            eager, replayed = (
                draw_image_tokens(Backbone.of(model), ids, mask, u, **settings, steps=steps)
                for steps in (Steps("eager"), captured)
            )
            assert torch.equal(eager.tokens, replayed.tokens)
            torch.testing.assert_close(eager.logps, replayed.logps, atol=1e-5, rtol=0)
        assert captured._kept["image"][1]._graphs
    assert captured._captures and captured._compiles


def draws_the_same(model) -> Steps:
    """Draws by compiled layers what the model's own draw; the steps that did so."""
    ids, mask = right_padded(PROMPTS)
    settings = {"num_tokens": 16, "pad": PAD, "how": Drawing(cfg_weight=3.0)}
    steps = Steps("compiled")
    theirs, ours = (
        draw_image_tokens(Backbone.of(model), ids, mask, uniforms(3), **settings, steps=s) for s in (None, steps)
    )
    assert torch.equal(theirs.tokens, ours.tokens)
    torch.testing.assert_close(theirs.logps, ours.logps, atol=1e-5, rtol=0)
    return steps


def test_our_layer_is_the_models(model, monkeypatch):
    monkeypatch.setattr(fused, "compiled", lambda: fused.layer_step)
    monkeypatch.setattr(capture, "WIDTH", 8)
    steps = draws_the_same(model)
    assert steps._kept["image"][1].decoder.layer_step is fused.layer_step


def test_layers_that_are_not_plain_are_left_to_the_model(model, make_policy):
    assert fused.can_fuse(model.model.language_model)
    policy = add_lora(make_policy(decoding="compiled"))
    assert not fused.can_fuse(policy.model.model.language_model)
    rollout = policy.rollout(["a cat"], 2, seed=0, step=0, cot=True, cfg_weight=3.0)
    policy.steps = Steps("eager")
    assert torch.equal(
        rollout.image.tokens, policy.rollout(["a cat"], 2, seed=0, step=0, cot=True, cfg_weight=3.0).image.tokens
    )
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: None)
    assert not fused.can_fuse(model.model.language_model)
    handle.remove()


@pytest.mark.slow
def test_compiled_layers_draw_what_eager_ones_draw(model, monkeypatch):
    monkeypatch.setattr(capture, "WIDTH", 8)
    assert draws_the_same(model)._compiles


def test_what_cannot_be_compiled_or_captured_is_told_once(model, monkeypatch, caplog):
    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted")

    ids, mask = right_padded(PROMPTS)
    settings = {"num_tokens": 16, "pad": PAD, "how": GREEDY}
    expected = draw_image_tokens(Backbone.of(model), ids, mask, None, **settings)
    monkeypatch.setattr(fused, "compiled", lambda: refuse)
    monkeypatch.setattr(capture.StaticLoop, "can_capture", True)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    steps = Steps("compiled")
    assert not steps.fell_back
    for _ in range(2):
        drawn = draw_image_tokens(Backbone.of(model), ids, mask, None, **settings, steps=steps)
        assert torch.equal(drawn.tokens, expected.tokens)
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "layers are not fused while sampling (perf/decoding=0)",
        "sampling runs eagerly (perf/decoding=0), which takes 4 to 12 times as long a token on a GPU",
    ]
    assert steps.fell_back
