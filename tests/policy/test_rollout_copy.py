"""The copy that rollouts read: whole weights at addresses that stay, refreshed where they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from egrpo.policy import JanusPolicy, add_lora
from egrpo.policy.backbone import Backbone
from egrpo.policy.capture import addresses
from egrpo.policy.rollout_copy import RolloutCopy

CPU = torch.device("cpu")


class Counting:
    """A gather that counts the elements it was asked for."""

    def __init__(self) -> None:
        self.elements = 0

    @contextmanager
    def __call__(self, parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[Tensor]]:
        self.elements += sum(p.numel() for p in parameters)
        yield parameters


def rollout(policy: JanusPolicy) -> Tensor:
    drawn = policy.rollout(["a red circle"], 2, seed=0, step=0, cot=True, cfg_weight=1.5)
    assert drawn.text is not None
    return torch.cat([drawn.text.logps, drawn.image.logps, drawn.pixels.flatten(1).float()], dim=1)


@pytest.mark.parametrize("adapter", [False, True])
def test_rollouts_from_the_copy_are_those_of_the_policy(policy, adapter: bool):
    if adapter:
        add_lora(policy)
    before = rollout(policy)
    policy.rollout_copy = RolloutCopy(policy.model)
    policy.rollout_copy.refresh(policy.model, nullcontext, CPU)
    assert policy.rollout_model is not policy.model and not next(iter(policy.rollout_model.buffers())).is_meta
    torch.testing.assert_close(rollout(policy), before, atol=0, rtol=0)


def test_only_trained_weights_are_copied_again_and_to_the_same_place(policy):
    copy, gather = RolloutCopy(policy.model), Counting()
    copy.refresh(policy.model, gather, CPU)
    places, everything = addresses(Backbone.of(copy.model)), gather.elements
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert 0 < trained < everything
    copy.refresh(policy.model, gather, CPU)
    assert gather.elements == everything  # nothing has changed
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.5)  # of the frozen ones this is no step of training, so the copy keeps what it has
    copy.mark_stale()
    copy.refresh(policy.model, gather, CPU)
    assert gather.elements == everything + trained and addresses(Backbone.of(copy.model)) == places
    ours = dict(copy.model.named_parameters())
    for name, p in policy.model.named_parameters():
        if not ours[name].is_meta:
            assert torch.equal(ours[name], p) == p.requires_grad, name


def test_neither_trained_nor_saved_nor_counted(policy):
    before = {name for name, _ in policy.named_parameters()}, set(policy.state_dict())
    policy.rollout_copy = RolloutCopy(policy.model)
    policy.rollout_copy.refresh(policy.model, nullcontext, CPU)
    assert before == ({name for name, _ in policy.named_parameters()}, set(policy.state_dict()))
    assert not any(p.requires_grad for p in policy.rollout_model.parameters())


def test_a_copy_made_in_a_validation_serves_training(policy):
    copy = RolloutCopy(policy.model)
    with torch.inference_mode():
        copy.refresh(policy.model, nullcontext, CPU)
    copy.mark_stale()
    copy.refresh(policy.model, nullcontext, CPU)  # raised: inplace update to an inference tensor


def test_hooks_stay_with_the_policy(policy):
    handle = policy.model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the policy's hook ran"))
    policy.rollout_copy = RolloutCopy(policy.model)
    policy.rollout_copy.refresh(policy.model, nullcontext, CPU)
    rollout(policy)
    assert policy.model.lm_head._forward_pre_hooks
    handle.remove()
