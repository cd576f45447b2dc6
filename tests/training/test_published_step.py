"""One whole step of the released trainers, through `GRPOModule.update`: the published experiments on the pack's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from egrpo.policy.scoring import score_text_columns
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
    rollout = step.rollout(case)
    assert rollout.plans == case.told["plans_decoded"]
    for name, part in (("text", rollout.text), ("image", rollout.image)):
        assert torch.equal(part.context_ids, case.arrays[f"{name}.prompt_ids"])
        assert torch.equal(part.context_mask, case.arrays[f"{name}.prompt_mask"].bool())


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
        plain = step.advantages(case)[:, None].expand(counted.shape)
        assert torch.equal(counted & (found["token_advantages"] == 0), wanted["low"].bool() & counted)
        assert torch.equal(
            counted & (found["token_advantages"] > plain + 1e-7) & ~wanted["low"].bool(),
            wanted["high"].bool() & counted,
        )
    for metric, name in (("loss", "loss"), ("kl", "mean_kl")):
        assert float(found[metric]) == pytest.approx(told[name], abs=LOSS)
    assert float(found["grad_norm"]) == pytest.approx(told["gradient_norm"], rel=NORM)
    check_gradients(found["gradients"], case, trainer)


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
    logps, entropy = score_text_columns(step.policy.backbone, step.rollout(case).text)
    close(logps, case.arrays["logps"][:, : case.text_columns], LOGPS)
    close(entropy, case.arrays["entropy"][:, : case.text_columns], ENTROPY)


def test_scores_at_counted_columns(steps: dict[str, Step], pack: list[Case]) -> None:
    for case in pack:
        step: Any = steps["eg_grpo"]
        step.load(case)
        found = step.rollout(case).sampled
        close(found.logps[case.mask], case.arrays["logps"][case.mask], LOGPS)
        close(found.entropy[case.mask], case.arrays["entropy"][case.mask], ENTROPY)
