"""One whole step of the released trainers through `GRPOModule.update`: published experiments on the pack's tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from egrpo.algorithm.entropy_policies import entropy_guided
from egrpo.policy import FrozenReference
from egrpo.types import Segment
from tests.training.published import ON_A_CPU, TRAINERS, Case, Step, cases, converted, native_name

# Of the pack's README, float32.
LOGPS, ENTROPY, ADVANTAGES, LOSS, GRADIENT, NORM = 1e-4, 1e-5, 1e-5, 1e-5, 1e-4, 1e-5
CASES = range(5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("published_step"))


@pytest.fixture(scope="module")
def pack() -> list[Case]:
    return cases()


@pytest.fixture(scope="module")
def steps(runs, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """A module for each trainer, composed as its experiment says."""
    folder = tmp_path_factory.mktemp("runs")
    where = [f"model.path={checkpoint}", *ON_A_CPU]
    return {name: Step(runs.published(folder, *given, *where)) for name, given in TRAINERS.items()}


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), atol=tolerance, rtol=0)


@pytest.mark.parametrize("number", CASES)
def test_contexts(steps: dict[str, Step], pack: list[Case], number: int) -> None:
    """Texts become the ids that the released code makes of them: plans keep the white space at their ends."""
    step, case = steps["eg_grpo"], pack[number]
    step.load(case)
    plans, contexts = step.contexts(case)
    assert plans == case.told["plans_decoded"]
    for name, (ids, mask) in contexts.items():
        assert torch.equal(ids, case.arrays[f"{name}.prompt_ids"])
        assert torch.equal(mask, case.arrays[f"{name}.prompt_mask"].bool())


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("trainer", list(TRAINERS))
def test_published_step(steps: dict[str, Step], pack: list[Case], trainer: str, number: int) -> None:
    step, case = steps[trainer], pack[number]
    told, wanted = case.told["trainers"][trainer], case.of(trainer)
    found = step.update(case)
    counted = case.mask
    close(step.advantages(case), case.arrays["group_advantages"], ADVANTAGES)
    close(found["ref_logps"][counted], case.arrays["ref_logps"][counted], LOGPS)
    close(found["token_advantages"][counted], wanted["token_advantages"][counted], ADVANTAGES)
    if "high" in wanted:
        high, low = bands(found["token_advantages"], step.advantages(case))
        assert torch.equal(low & counted, wanted["low"].bool() & counted)
        assert torch.equal(high & counted, wanted["high"].bool() & counted)
    for metric, name in (("loss", "loss"), ("kl", "mean_kl")):
        assert float(found[metric]) == pytest.approx(told[name], abs=LOSS)
    assert float(found["grad_norm"]) == pytest.approx(told["gradient_norm"], rel=NORM)
    check_gradients(found["gradients"], case, trainer)


def bands(shaped: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens got a bonus and which lost the advantage, [N, T] bool, of advantages [N] that are not 0."""
    assert (advantages.abs() > 1e-3).all()
    low = shaped == 0
    return ~low & (shaped > advantages[:, None]), low


def check_gradients(gradients: dict[str, Tensor], case: Case, trainer: str) -> None:
    norms = case.told["trainers"][trainer]["gradient_norm_by_tensor"]
    assert {native_name(name) for name in norms} == set(gradients)
    for name, norm in norms.items():
        assert float(gradients[native_name(name)].norm()) == pytest.approx(norm, rel=NORM), name
    for name, wanted in case.of(trainer).items():
        kind, _, tensor = name.partition(".")
        if kind in ("grad", "grad_rows"):
            whole = gradients[native_name(tensor)]
            rows = whole[case.told["gradient_rows"][tensor]] if kind == "grad_rows" else whole
            close(rows, wanted, GRADIENT * float(whole.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("number", CASES)
def test_scores_at_every_text_column(steps: dict[str, Step], pack: list[Case], number: int) -> None:
    step, case = steps["eg_grpo"], pack[number]
    step.load(case)
    found = step.policy.score(step.rollout(case), segment="text", at_padding=True)
    close(found.logps, case.arrays["logps"][:, : case.text_columns], LOGPS)
    close(found.entropy, case.arrays["entropy"][:, : case.text_columns], ENTROPY)


def test_scores_at_counted_columns(steps: dict[str, Step], pack: list[Case]) -> None:
    for case in pack:
        step: Any = steps["eg_grpo"]
        step.load(case)
        found = step.rollout(case).sampled
        close(found.logps[case.mask], case.arrays["logps"][case.mask], LOGPS)
        close(found.entropy[case.mask], case.arrays["entropy"][case.mask], ENTROPY)


def test_a_reference_with_embeddings_of_its_own(steps: dict[str, Step], pack: list[Case]) -> None:
    step = steps["t2i_r1"]
    published = step.module.reference
    step.module.reference = FrozenReference(step.policy)  # reference.embeddings=own
    step.module.reference.load_state_dict(published.state_dict())
    try:
        for case in pack:
            step.load(case)
            found = step.module.reference_logps(step.rollout(case))[case.mask]
            close(found, case.arrays["ref_logps_own_embeddings"][case.mask], LOGPS)
            moved = (found - case.arrays["ref_logps"][case.mask]).abs().max()
            assert (moved > 0.1) == ("policy" in case.told["policy_embed_tokens_from"])  # or the key would show nothing
    finally:
        step.module.reference = published


def test_neither_zeros_nor_silence_at_padding_give_the_published_advantages(
    steps: dict[str, Step], pack: list[Case]
) -> None:
    """What else the ranks could be made of gives other bands wherever there is padding."""
    step = steps["eg_grpo"]
    for case in pack:
        step.load(case)
        sampled = step.rollout(case).sampled  # 0 at padding
        wanted = case.of("eg_grpo")["token_advantages"]
        padded = not bool(case.mask.all())
        for rank_padding in (True, False):
            policy = partial(entropy_guided, rank_padding=rank_padding)
            shaped, _ = policy(step.advantages(case), sampled.entropy, sampled.mask, sampled.is_image)
            wrong = (shaped - wanted).abs()[case.mask] > ADVANTAGES
            assert bool(wrong.any()) == padded


def joined(pairs: list[Segment], eos: int) -> Segment:
    """Rows of several segments: contexts filled on the left, tokens on the right (end-of-sequence after plans)."""

    def rows(name: str, left: bool, value: float) -> Tensor:
        parts = [getattr(pair, name) for pair in pairs]
        width = max(part.shape[1] for part in parts)
        missing = [width - part.shape[1] for part in parts]
        sides = [(n, 0) if left else (0, n) for n in missing]
        filled = [nn.functional.pad(part, side, value=value) for part, side in zip(parts, sides, strict=True)]
        return torch.cat(filled)

    return Segment(
        rows("context_ids", True, 0),
        rows("context_mask", True, False),
        rows("tokens", False, eos),
        rows("mask", False, False),
        rows("logps", False, 0),
        rows("entropy", False, 0),
    )


def test_each_prompt_s_group_is_a_micro_step_of_its_own(steps: dict[str, Step], pack: list[Case]) -> None:
    """Two cases of eight samples in one update: each has the bands and the reference that it has alone."""
    step = steps["eg_grpo"]
    assert step.module.objective.micro_batch_size == 8
    pair = [pack[0], pack[1]]
    step.load(pair[0])
    assert all(torch.equal(v, pair[1].trained[name]) for name, v in pair[0].trained.items())  # one policy
    rollouts = [step.rollout(case) for case in pair]
    text, image = (
        joined([getattr(r, name) for r in rollouts], step.policy.tokenizer.eos_token_id) for name in ("text", "image")
    )
    whole = replace(rollouts[0], prompts=[""] * 16, plans=[""] * 16, text=text, image=image)
    whole = replace(whole, truncated=whole.text.mask.all(dim=1), pixels=torch.zeros(16, 1, 1, 3, dtype=torch.uint8))
    found = step.update_on(whole, torch.cat([step.advantages(case) for case in pair]))
    width, counted = text.tokens.shape[1], [int(case.mask.sum()) for case in pair]
    for number, case in enumerate(pair):
        rows, own = slice(8 * number, 8 * number + 8), case.text_columns
        for name, wanted, tolerance in (
            ("token_advantages", case.of("eg_grpo")["token_advantages"], ADVANTAGES),
            ("ref_logps", case.arrays["ref_logps"], LOGPS),
        ):
            values = torch.cat([found[name][rows, :own], found[name][rows, width:]], dim=1)
            close(values[case.mask], wanted[case.mask], tolerance)
    losses = [case.told["trainers"]["eg_grpo"]["loss"] for case in pair]
    mean = sum(loss * tokens for loss, tokens in zip(losses, counted, strict=True)) / sum(counted)
    assert float(found["loss"]) == pytest.approx(mean, abs=LOSS)


@pytest.mark.parametrize("trainer", ["t2i_r1", "image_only"])
def test_nothing_is_scored_at_padding_where_it_is_not_ranked(
    steps: dict[str, Step], pack: list[Case], trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egrpo.policy.scoring.score_text_columns", lambda *_, **__: pytest.fail("a pass too many"))
    steps[trainer].update(pack[0])
    with pytest.raises(pytest.fail.Exception):
        steps["text_only"].update(pack[0])


@torch.no_grad()
def test_attention_that_drops_padding_is_refused(steps: dict[str, Step], pack: list[Case], monkeypatch) -> None:
    step = steps["eg_grpo"]
    step.load(pack[0])
    rollout, config = step.rollout(pack[0]), step.policy.backbone.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"attn_implementation=flash_attention_2 computes nothing at padding"):
        step.policy.score(rollout, segment="text", at_padding=True)


def test_bands_in_bfloat16(runs, checkpoint: Path, pack: list[Case], tmp_path: Path) -> None:
    """How often a token is in another band than in float32, where the weights are bfloat16 (docs/paper.md)."""
    given = [*TRAINERS["eg_grpo"], f"model.path={checkpoint}", *ON_A_CPU, "model.dtype=bfloat16"]
    step = Step(runs.published(tmp_path, *given))
    moved, tokens = {"text": 0, "image": 0}, {"text": 0, "image": 0}
    for case in pack:
        found = bands(step.update(case)["token_advantages"], step.advantages(case))
        wanted = [case.of("eg_grpo")[name].bool() for name in ("high", "low")]
        other = ((found[0] != wanted[0]) | (found[1] != wanted[1])) & case.mask
        for name, columns in (("text", slice(0, case.text_columns)), ("image", slice(case.text_columns, None))):
            moved[name] += int(other[:, columns].sum())
            tokens[name] += int(case.mask[:, columns].sum())
    print(f"in another band: {moved} of {tokens}")
    for name, count in moved.items():
        assert 0 < count < 0.05 * tokens[name]
