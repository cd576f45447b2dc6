from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
import torch
from transformers import JanusForConditionalGeneration

from egrpo.policy import FrozenReference, JanusPolicy, Templates, load_janus
from egrpo.policy.layout import right_padded
from egrpo.types import PromptRecord, Rollout, Segment, TokenScores

PROMPTS = ["a red cat under two blue dogs", "a {hat}", "three cups"]
DRAW = {"seed": 7, "step": 2, "cot": True, "cfg_weight": 3.0}


def assert_same(a: Segment, b: Segment) -> None:
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.logps, b.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.entropy, b.entropy, atol=1e-5, rtol=0)


def recorded(rollout: Rollout) -> TokenScores:
    parts = [rollout.image] if rollout.text is None else [rollout.text, rollout.image]
    logps, entropy, mask = (torch.cat([getattr(p, n) for p in parts], 1) for n in ("logps", "entropy", "mask"))
    image = torch.arange(mask.shape[1]) >= mask.shape[1] - 16
    return TokenScores(logps, entropy, mask, image.expand_as(mask))


@pytest.mark.parametrize("padding", ["exact", "published"])
@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("cfg_weight, temperature", [(1.0, 1.0), (3.0, 0.7)])
def test_scores_equal_what_was_recorded(make_policy, padding: str, cot: bool, cfg_weight: float, temperature: float):
    policy = make_policy(padding=padding)
    draw = DRAW | {"cot": cot, "cfg_weight": cfg_weight, "temperature": temperature}
    rollout = policy.rollout(PROMPTS, 2, **draw)
    scores, told = policy.score(rollout, temperature=temperature), recorded(rollout)
    torch.testing.assert_close(scores.logps, told.logps, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.entropy, told.entropy, atol=1e-5, rtol=0)
    assert torch.equal(scores.mask, told.mask) and torch.equal(scores.is_image, told.is_image)
    assert scores.logps.requires_grad and not scores.entropy.requires_grad
    assert scores.logps.dtype == scores.entropy.dtype == torch.float32


@pytest.mark.parametrize("padding", ["exact", "published"])
def test_guided_scores_are_those_of_the_distribution_drawn_from(make_policy, padding: str):
    policy = make_policy(padding=padding)
    draw = DRAW | {"cfg_weight": 3.0, "temperature": 0.7}
    guided, plain = policy.rollout(PROMPTS, 2, **draw, guided_logps=True), policy.rollout(PROMPTS, 2, **draw)
    assert torch.equal(guided.image.tokens, plain.image.tokens) and (guided.guidance, plain.guidance) == (3.0, 1.0)
    scores, told = policy.score(guided, temperature=0.7), recorded(guided)
    torch.testing.assert_close(scores.logps, told.logps, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.entropy, told.entropy, atol=1e-5, rtol=0)
    assert (guided.image.logps - plain.image.logps).abs().max() > 0.1
    torch.testing.assert_close(guided.text.logps, plain.text.logps)  # plans are drawn without guidance
    reference = FrozenReference(policy)
    torch.testing.assert_close(reference.score(guided, temperature=0.7).logps, scores.logps, atol=1e-6, rtol=0)
    parts = [policy.score(guided[rows], temperature=0.7).logps for rows in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(torch.cat(parts), scores.logps, atol=1e-5, rtol=0)
    # The likeliest of 64 codes has at least probability 1/64 in the distribution that it is the likeliest of.
    greedy = policy.rollout(PROMPTS, 1, **draw | {"greedy": True}, guided_logps=True)
    assert (greedy.image.logps.exp() > 1 / 64).all()


def test_rollout_shapes(policy: JanusPolicy):
    rollout = policy.rollout([PromptRecord("a cat"), PromptRecord("two dogs")], 3, **DRAW)
    assert len(rollout) == 6 and rollout.prompts == ["a cat"] * 3 + ["two dogs"] * 3
    assert rollout.image.tokens.shape == (6, 16) and rollout.image.mask.all()
    assert (rollout.image.context_ids[:, -1] == 4).all()
    assert rollout.text is not None and rollout.text.tokens.shape == (6, 12)
    assert rollout.pixels.shape == (6, 8, 8, 3) and rollout.pixels.dtype == torch.uint8
    assert len(set(map(tuple, rollout.image.tokens.tolist()))) == 6
    assert any(rollout.plans) and not any(t.is_inference() for t in (rollout.pixels, rollout.image.tokens))
    for i in range(6):
        ended = bool((rollout.text.tokens[i] == 2).any())
        assert bool(rollout.truncated[i]) is not ended
    off = policy.rollout(["a cat"], 2, **DRAW | {"cot": False})
    assert off.text is None and off.plans == ["", ""] and not off.truncated.any()


def test_the_plan_is_part_of_the_image_prompt(policy: JanusPolicy):
    rollout = policy.rollout(["a cat"], 2, **DRAW)
    for i, plan in enumerate(rollout.plans):
        ids = rollout.image.context_ids[i][rollout.image.context_mask[i]].tolist()
        assert ids == [1, *policy.tokenizer(f"User: a cat. {plan}\n\nAssistant:")["input_ids"], 4]


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("cot", [True, False])
def test_samples_do_not_depend_on_batch_or_chunk(policy: JanusPolicy, greedy: bool, cot: bool):
    draw = DRAW | {"greedy": greedy, "cot": cot}
    whole = policy.rollout(PROMPTS, 2, **draw)
    chunked = policy.rollout(PROMPTS, 2, chunk=4, **draw)
    alone = policy.rollout([PROMPTS[1]], 1, sample_offset=1, **draw)
    assert torch.equal(whole.pixels, chunked.pixels) and whole.plans == chunked.plans
    assert_same(whole.image, chunked.image)
    assert torch.equal(alone.image.tokens[0], whole.image.tokens[3]) and alone.plans[0] == whole.plans[3]
    torch.testing.assert_close(alone.image.logps[0], whole.image.logps[3], atol=1e-5, rtol=0)
    if cot:
        assert_same(whole.text, chunked.text)
        assert torch.equal(whole.truncated, chunked.truncated)


def test_published_results_do_not_depend_on_the_chunk(make_policy):
    policy = make_policy(padding="published")
    whole, chunked = (policy.rollout(PROMPTS, 2, chunk=chunk, **DRAW) for chunk in (None, 2))
    assert_same(whole.image, chunked.image)
    exact = make_policy().rollout(PROMPTS, 2, **DRAW)
    assert whole.plans == exact.plans and not torch.equal(whole.image.tokens, exact.image.tokens)


def test_the_limit_of_plans_does_not_shift_the_images_numbers(make_policy):
    # A prompt template without the plan: images may only differ by their random numbers.
    templates = Templates("{prompt}", image="{prompt}")
    short, long = (make_policy(max_plan_tokens=n) for n in (2, 9))
    short.templates = long.templates = templates
    a, b = short.rollout(PROMPTS, 2, **DRAW), long.rollout(PROMPTS, 2, **DRAW)
    assert torch.equal(a.image.tokens, b.image.tokens)
    assert torch.equal(a.text.tokens, b.text.tokens[:, :2])


def test_slices_of_a_rollout_give_the_same_gradient(policy: JanusPolicy):
    rollout = policy.rollout(PROMPTS, 2, **DRAW)
    weights = torch.linspace(-1, 1, 6)[:, None]

    def gradient(size: int) -> tuple[TokenScores, torch.Tensor]:
        policy.zero_grad()
        parts = []
        for start in range(0, 6, size):
            rows = slice(start, start + size)
            parts.append(policy.score(rollout[rows]))
            ((parts[-1].logps * weights[rows]).sum() / 100).backward()
        grads = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        return TokenScores.cat(parts), torch.cat(grads)

    (whole, whole_grad), (sliced, sliced_grad), (single, single_grad) = (gradient(n) for n in (6, 2, 1))
    assert whole_grad.abs().max() > 0.01
    for scores, grad in ((sliced, sliced_grad), (single, single_grad)):
        torch.testing.assert_close(grad, whole_grad, atol=1e-6, rtol=1e-5)
        for f in fields(TokenScores):
            torch.testing.assert_close(getattr(scores, f.name), getattr(whole, f.name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["exact", "published"])
def test_scoring_runs_no_more_columns_than_its_rows_need(make_policy, monkeypatch, padding: str):
    """Plans of 2 to 12 tokens: rows with short ones are not padded to the longest of the rollout, nor masked."""
    policy = make_policy(padding=padding)
    rollout = policy.rollout(PROMPTS, 2, **DRAW)
    lengths = torch.tensor([2, 3, 4, 12, 12, 12])
    text = replace(rollout.text, mask=torch.arange(rollout.text.tokens.shape[1]) < lengths[:, None])
    rollout = replace(rollout, text=text)
    runs: list[tuple[int, bool]] = []
    language_model = policy.model.model.language_model
    language_model.register_forward_pre_hook(
        lambda module, args, given: runs.append((given["inputs_embeds"].shape[1], given["attention_mask"] is None)),
        with_kwargs=True,
    )
    policy.score(rollout[:3])
    needed = (rollout.text.context_mask.sum(1) + lengths)[:3].max() - 1
    contexts = rollout.image.context_mask[:3]
    width = contexts.sum(1).max() if padding == "exact" else contexts.shape[1]
    assert runs == [(needed, True), (width + 15, padding == "exact")]


def test_scores_of_one_segment(policy: JanusPolicy):
    rollout = policy.rollout(PROMPTS, 2, **DRAW)
    whole = policy.score(rollout)
    parts = [policy.score(rollout[torch.arange(6)], segment=name) for name in ("text", "image")]
    for f in fields(TokenScores):
        joined = torch.cat([getattr(part, f.name) for part in parts], dim=1)
        torch.testing.assert_close(joined, getattr(whole, f.name), atol=1e-6, rtol=0)
    bare = policy.rollout(PROMPTS, 2, **DRAW | {"cot": False})
    assert torch.equal(policy.score(bare, segment="image").logps, policy.score(bare).logps)
    with pytest.raises(ValueError, match="segment=text: this rollout has image"):
        policy.score(bare, segment="text")


def test_padding_moves_to_the_right():
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()
    values = torch.arange(5).expand(3, 5).gather(1, right_padded(mask))
    assert [row[:n].tolist() for row, n in zip(values, (2, 1, 3))] == [[1, 3], [0], [2, 3, 4]] and values.shape == (
        3,
        3,
    )


def test_gradient_checkpointing_changes_nothing(make_policy):
    grads = []
    for on in (False, True):
        policy = make_policy(gradient_checkpointing=on).train()
        rollout = policy.rollout(PROMPTS, 1, **DRAW)
        policy.score(rollout).logps.mean().backward()
        grads.append(policy.model.model.language_model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=1e-5)


def test_only_language_model_and_text_head_learn(policy: JanusPolicy):
    policy.train()
    policy.score(policy.rollout(PROMPTS, 1, **DRAW)).logps.sum().backward()
    for name, parameter in policy.model.named_parameters():
        learns = name.startswith(("model.language_model.", "lm_head."))
        assert parameter.requires_grad is learns, name
        assert (parameter.grad is not None) is learns, name
    inner = policy.model.model
    assert inner.language_model.training and not inner.vqmodel.training and not inner.generation_head.training


def test_rollout_leaves_the_training_mode(policy: JanusPolicy):
    policy.train()
    before = [part.training for part in policy.modules()]
    policy.rollout(PROMPTS[:1], 1, **DRAW)
    assert [part.training for part in policy.modules()] == before


def test_trainable_names(make_policy):
    policy = make_policy(trainable=("generation_head",))
    trained = {name.split(".")[1] for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {"generation_head"}
    with pytest.raises(ValueError, match="'language_modl'"):
        make_policy(trainable=("language_modl",))


def test_masked_positions_of_a_plan_are_not_scored(policy: JanusPolicy):
    rollout = policy.rollout(PROMPTS, 1, **DRAW)
    mask = rollout.text.mask.clone()
    mask[:, 3:] = False
    cut = replace(rollout, text=replace(rollout.text, mask=mask))
    scores, whole = policy.score(cut), policy.score(rollout)
    assert (scores.logps[:, 3:12] == 0).all() and (scores.entropy[:, 3:12] == 0).all()
    torch.testing.assert_close(scores.logps[:, :3], whole.logps[:, :3], atol=1e-5, rtol=0)


def test_begin_of_sequence_stands_once(policy: JanusPolicy):
    assert policy.reasoning_ids("a")[:2] == [1, policy.tokenizer("B")["input_ids"][0]]
    tokenizer = policy.tokenizer
    policy.tokenizer = lambda text: {"input_ids": [1, *tokenizer(text)["input_ids"]]}
    policy.tokenizer.bos_token_id, policy.tokenizer.added_tokens_decoder = 1, {}
    assert policy.image_ids("a").count(1) == 1


def test_another_number_of_image_tokens(make_policy):
    rollout = make_policy(num_image_tokens=9).rollout(["a"], 2, **DRAW)
    assert rollout.image.tokens.shape == (2, 9) and rollout.pixels.shape == (2, 6, 6, 3)
    with pytest.raises(ValueError, match="square"):
        make_policy(num_image_tokens=10)


def test_pixels_literal(policy: JanusPolicy):
    values = torch.tensor([-1.2, -1.0, 0.0, 0.5, 1.0, 1.3]).view(1, 1, 2, 3)
    policy.model.decode_image_tokens = lambda codes: values
    assert policy.decode(torch.zeros(1, 16).long()).flatten().tolist() == [0, 0, 127, 191, 255, 255]


def test_export_and_reload(policy: JanusPolicy, tmp_path):
    policy.export(tmp_path)
    ids = torch.tensor([[1, 20, 21]])
    again = JanusForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, policy.model(ids).logits)
    reloaded = JanusPolicy.from_pretrained(
        str(tmp_path), {"reasoning": "Describe {prompt}.", "system": "Be brief."}, max_plan_tokens=12
    )
    a, b = policy.rollout(PROMPTS, 1, **DRAW), reloaded.rollout(PROMPTS, 1, **DRAW)
    assert a.plans == b.plans and torch.equal(a.pixels, b.pixels)


def test_tied_embeddings_stay_tied(policy: JanusPolicy, tmp_path):
    model = policy.model
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    tied = JanusPolicy(model, policy.tokenizer, policy.templates, max_plan_tokens=3)
    assert tied.model.lm_head.weight.requires_grad
    copies = FrozenReference(tied).copies
    assert copies["lm_head"].weight is copies["language_model"].embed_tokens.weight
    tied.export(tmp_path)
    again, _ = load_janus(tmp_path)
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_bfloat16(policy: JanusPolicy, tmp_path):
    policy.export(tmp_path)
    model, _ = load_janus(tmp_path, "bfloat16")
    low = JanusPolicy(model, policy.tokenizer, policy.templates, max_plan_tokens=12)
    rollout = low.rollout(PROMPTS, 1, **DRAW)
    scores = low.score(rollout)
    assert scores.logps.dtype == torch.float32 and rollout.image.logps.dtype == torch.float32
    assert (scores.logps - recorded(rollout).logps).abs().mean() < 0.05


def test_faults_are_named(policy: JanusPolicy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Janus checkpoint at .*nowhere"):
        load_janus(tmp_path / "nowhere")
    for kind, message in (("llama", "is not a Janus checkpoint"), ("multi_modality", "convert it first")):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(ValueError, match=message):
            load_janus(tmp_path)
    with pytest.raises(ValueError, match="at least one prompt"):
        policy.rollout([], 2, **DRAW)
    policy.export(tmp_path)
    with pytest.raises(ValueError, match="dtype"):
        load_janus(tmp_path, "float33")
    weights = copy.deepcopy(policy.model)
    state = {k: v for k, v in weights.state_dict().items() if k != "lm_head.weight"}
    weights.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 1 weights, lm_head\.weight"):
        load_janus(tmp_path)


def test_rotary_frequencies_keep_their_type(make_policy):
    policy = make_policy()
    reference = FrozenReference(policy)
    rotary = policy.model.model.language_model.rotary_emb
    before = rotary.inv_freq.clone()
    for part in (policy, reference):
        part.to(torch.bfloat16)
    for kept in (rotary, reference.copies["language_model"].rotary_emb):
        assert kept.inv_freq.dtype == torch.float32 and torch.equal(kept.inv_freq, before)
    assert policy.model.lm_head.weight.dtype == torch.bfloat16
    assert reference.copies["language_model"].rotary_emb is not rotary
