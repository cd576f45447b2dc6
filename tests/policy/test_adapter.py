from __future__ import annotations

import copy

import pytest
import torch
from transformers import JanusForConditionalGeneration

from egrpo.policy import AdapterOffReference, FrozenReference, JanusPolicy, add_lora

DRAW = {"seed": 7, "step": 2, "cot": True, "cfg_weight": 2.0}


def pointers(module: torch.nn.Module) -> set[int]:
    return {p.data_ptr() for p in module.parameters()}


def nudge(policy: JanusPolicy) -> None:
    """Moves what is trainable, so that the policy is no longer the base."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += torch.full_like(parameter, 0.02)


@pytest.fixture
def lora(make_policy) -> JanusPolicy:
    return add_lora(make_policy(), r=4, alpha=8)


def test_lora_trains_adapters_only(lora: JanusPolicy):
    lora.train()
    lora.score(lora.rollout(["a cat"], 2, **DRAW)).logps.sum().backward()
    names = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * 2 and all("lora_" in name and "language_model" in name for name in names)
    for name, parameter in lora.named_parameters():
        assert (parameter.grad is not None) is (name in names), name


def test_adapter_off_reference_is_the_base(lora: JanusPolicy, policy: JanusPolicy):
    rollout = policy.rollout(["a cat", "two dogs"], 2, **DRAW)
    base = policy.score(rollout)
    reference = AdapterOffReference(lora)
    torch.testing.assert_close(lora.score(rollout).logps, base.logps, atol=1e-5, rtol=0)  # a new adapter adds nothing
    nudge(lora)
    live = lora.score(rollout)
    told = reference.score(rollout)
    torch.testing.assert_close(told.logps, base.logps, atol=1e-5, rtol=0)
    assert (live.logps - base.logps).abs().max() > 0.1 and not told.logps.requires_grad
    # The graph made before the reference ran still reaches the adapters, and they are on again.
    live.logps.sum().backward()
    assert all(p.grad is not None for p in lora.parameters() if p.requires_grad)
    torch.testing.assert_close(lora.score(rollout).logps, live.logps, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no adapter"):
        AdapterOffReference(policy)


def test_frozen_reference_stays(policy: JanusPolicy):
    rollout = policy.rollout(["a cat", "two dogs"], 2, **DRAW)
    base = policy.score(rollout)
    reference = FrozenReference(policy).train()
    nudge(policy)
    told = reference.score(rollout)
    torch.testing.assert_close(told.logps, base.logps, atol=1e-6, rtol=0)
    torch.testing.assert_close(told.entropy, base.entropy, atol=1e-6, rtol=0)
    assert (policy.score(rollout).logps - base.logps).abs().max() > 0.01
    assert not told.logps.requires_grad and not any(p.requires_grad for p in reference.parameters())
    assert not any(part.training for part in reference.modules())


def test_scores_without_entropies(policy: JanusPolicy, lora: JanusPolicy):
    rollout = policy.rollout(["a cat", "two dogs"], 2, **DRAW)
    for judge in (policy, FrozenReference(policy), AdapterOffReference(lora)):
        whole, short = judge.score(rollout), judge.score(rollout, entropy=False)
        assert torch.equal(short.logps, whole.logps) and short.entropy.shape == (4, 0) != whole.entropy.shape
        assert torch.equal(short.mask, whole.mask) and torch.equal(short.is_image, whole.is_image)


def test_frozen_reference_copies_no_more_than_what_is_trained(policy: JanusPolicy):
    reference = FrozenReference(policy)
    assert set(reference.copies) == {"language_model", "lm_head"}
    assert not pointers(reference) & pointers(policy)
    inner = policy.model.model
    assert pointers(inner.generation_head) <= {p.data_ptr() for m in reference._shared.values() for p in m.parameters()}
    count = sum(p.numel() for part in (inner.language_model, policy.model.lm_head) for p in part.parameters())
    assert sum(p.numel() for p in reference.parameters()) == count


def test_frozen_reference_from_another_model(policy: JanusPolicy):
    rollout = policy.rollout(["a cat"], 2, **DRAW)
    base = policy.score(rollout)
    other = copy.deepcopy(policy.model)
    nudge(policy)
    reference = FrozenReference(policy, other)
    torch.testing.assert_close(reference.score(rollout).logps, base.logps, atol=1e-6, rtol=0)
    assert pointers(reference) <= pointers(other)


def test_export_merges_the_adapter(lora: JanusPolicy, tmp_path):
    nudge(lora)
    ids = torch.tensor([[1, 20, 21, 40]])
    before = {name: p.clone() for name, p in lora.named_parameters()}
    lora.export(tmp_path)
    plain = JanusForConditionalGeneration.from_pretrained(tmp_path)
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, lora.model(ids).logits, atol=1e-4, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in lora.named_parameters())


def test_adapter_at_loading(policy: JanusPolicy, tmp_path):
    policy.export(tmp_path)
    loaded = JanusPolicy.from_pretrained(
        tmp_path, policy.templates, max_plan_tokens=4, adapter=lambda p: add_lora(p, r=2)
    )
    assert {p.shape[0] for n, p in loaded.named_parameters() if "lora_A" in n} == {2}
