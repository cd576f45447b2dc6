"""What the trainer draws: the same whatever the batch, and the same when it is scored again."""

from __future__ import annotations

import pytest
import torch

from egrpo.data import read_prompts
from egrpo.images import to_images
from egrpo.training import GRPOModule, RolloutSettings
from egrpo.types import PromptRecord, Rollout
from tests.training.pieces import make_lively


@pytest.fixture(scope="module")
def module(runs, tmp_path_factory: pytest.TempPathFactory) -> GRPOModule:
    module = runs.module(tmp_path_factory.mktemp("module"))
    make_lively(module.policy)
    return module


@pytest.fixture(scope="module")
def records(prompts) -> list[PromptRecord]:
    """Prompts of different lengths: a long one first, the shortest in the third place."""
    few = sorted(read_prompts(str(prompts / "train.jsonl")), key=lambda record: len(record.prompt))
    assert len(few[2].prompt) + 10 < len(few[-1].prompt)
    return [few[-1], few[1], few[0], few[2]]


def rewards(module: GRPOModule, rollout: Rollout, records: list[PromptRecord]) -> torch.Tensor:
    return module.rewards(to_images(rollout.pixels), records).total


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("cot, cfg_weight", [(True, 2.0), (False, 1.0)])
def test_a_prompt_alone_gets_what_it_gets_among_others(module, records, batch_size, cot: bool, cfg_weight: float):
    module.rollout_settings = RolloutSettings(group_size=3, cfg_weight=cfg_weight, cot=cot, batch_size=batch_size)
    together = module.sample(records, step=5)
    alone = module.sample(records[2:3], step=5)
    rows = slice(6, 9)
    assert together.prompts[rows] == alone.prompts and together.plans[rows] == alone.plans
    assert torch.equal(together.image.tokens[rows], alone.image.tokens)
    torch.testing.assert_close(together.image.logps[rows], alone.image.logps, atol=1e-5, rtol=0)
    if cot:
        counted = alone.text.mask
        length = counted.shape[1]
        assert torch.equal(together.text.mask[rows, :length], counted) and not together.text.mask[rows, length:].any()
        assert torch.equal(together.text.tokens[rows, :length][counted], alone.text.tokens[counted])
        ours, theirs = together.text.logps[rows, :length][counted], alone.text.logps[counted]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    else:
        assert together.text is None and alone.text is None
    grouped = [record for record in records for _ in range(3)]
    assert torch.equal(rewards(module, together, grouped)[rows], rewards(module, alone, grouped[rows]))
    assert not torch.equal(module.sample(records[2:3], step=6).image.tokens, alone.image.tokens)


@pytest.mark.parametrize("padding", ["exact", "published"])
@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("cfg_weight", [1.0, 2.0])
def test_teacher_forcing_gives_what_was_recorded_while_sampling(
    module, records, monkeypatch, padding: str, cot: bool, cfg_weight: float
):
    monkeypatch.setattr(module.policy, "padding", padding)
    module.rollout_settings = RolloutSettings(group_size=2, cfg_weight=cfg_weight, temperature=0.8, cot=cot)
    rollout = module.sample(records, step=0)
    scores = module.policy.score(rollout, temperature=0.8)
    segments = [rollout.text, rollout.image] if cot else [rollout.image]
    logps, entropy, mask = (torch.cat([getattr(s, n) for s in segments], 1) for n in ("logps", "entropy", "mask"))
    assert torch.equal(scores.mask, mask)
    torch.testing.assert_close(scores.logps, logps, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.entropy, entropy, atol=1e-5, rtol=0)
    assert (scores.entropy[mask] > 0).any() and (scores.entropy <= 1 + 1e-6).all()
    # Another temperature would not do.
    hotter = module.policy.score(rollout, temperature=1.6)
    assert (hotter.logps - logps).abs().max() > 1e-3
