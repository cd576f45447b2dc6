"""Heads with a shortcut to their gradient: a trained linear one, and frozen ones of any kind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from egrpo.algorithm import heads, logps_and_entropy

M, D, V = 11, 6, 23
Head = Callable[[], nn.Module]


def linear(bias: bool = True) -> nn.Module:
    return nn.Linear(D, V, bias=bias)


def frozen() -> nn.Module:
    """As Janus's image head."""
    return nn.Sequential(nn.Linear(D, 9), nn.GELU(), nn.Linear(9, V)).requires_grad_(False)


def bounded() -> nn.Module:
    """Its last operation keeps its output for the backward pass, so the logits must stay as they are."""
    return nn.Sequential(nn.Linear(D, V), nn.Tanh()).requires_grad_(False)


HEADS = [linear, lambda: linear(bias=False), lambda: linear().requires_grad_(False), frozen, bounded]
NAMES = ["linear", "no bias", "frozen linear", "frozen", "bounded"]


def problem(make: Head, dtype: torch.dtype, m: int = M) -> tuple[Tensor, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    head = make().to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    hidden = torch.randn(m, D).to(dtype).requires_grad_()
    return hidden, head, torch.randint(V, (m,)), torch.randn(m)


def gradients(logps: Tensor, factor: Tensor, hidden: Tensor, head: nn.Module) -> list[Tensor]:
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return list(torch.autograd.grad((logps * factor).sum(), wanted))


def naive(hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float) -> Tensor:
    logits = head(hidden)
    log_probs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    return log_probs.gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("block", [4 * V, 3 * 4 * V, 1 << 20], ids=["a row", "three rows", "all"])
@pytest.mark.parametrize("chunk_size", [1, 4, M, 100])
@pytest.mark.parametrize("make", HEADS, ids=NAMES)
def test_gradients_are_those_of_all_logits(monkeypatch, make: Head, chunk_size: int, block: int):
    monkeypatch.setattr(heads, "SOFTMAX_BYTES", block)
    hidden, head, targets, factor = problem(make, torch.float32)
    want = naive(hidden, head, targets, 0.7)
    logps, entropy = logps_and_entropy(hidden, head, targets, temperature=0.7, chunk_size=chunk_size)
    torch.testing.assert_close(logps, want, atol=1e-5, rtol=1e-5)
    assert entropy.shape == (M,) and not entropy.requires_grad
    found, expected = (gradients(own, factor, hidden, head) for own in (logps, want))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("make", HEADS, ids=NAMES)
def test_bfloat16_within_its_own_rounding(make: Head):
    """No farther from float64 than autograd's own gradient in bfloat16 is, but for what rounding happens to do."""
    hidden, head, targets, factor = problem(make, torch.bfloat16, m=64)
    logps, _ = logps_and_entropy(hidden, head, targets, chunk_size=10)
    assert torch.equal(logps, naive(hidden, head, targets, 1.0)) and logps.dtype == torch.float32
    found = gradients(logps, factor, hidden, head)
    plain = gradients(naive(hidden, head, targets, 1.0), factor, hidden, head)
    wide = [head.to(torch.float64), hidden.detach().double().requires_grad_()]
    exact = gradients(naive(wide[1], wide[0], targets, 1.0), factor.double(), wide[1], wide[0])
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        error, usual = ((g.double() - true).norm() / true.norm() for g in (ours, theirs))
        assert error <= max(1.5 * usual, 2**-8)


@pytest.mark.parametrize("make", HEADS, ids=NAMES)
def test_results_with_gradient_and_without_are_the_same(make: Head):
    hidden, head, targets, _ = problem(make, torch.float32)
    taught = logps_and_entropy(hidden, head, targets, chunk_size=4)
    with torch.no_grad():
        plain = logps_and_entropy(hidden, head, targets, chunk_size=4)
        bare, none = logps_and_entropy(hidden, head, targets, chunk_size=4, entropy=False)
    assert torch.equal(taught[0], plain[0]) and torch.equal(taught[1], plain[1]) and torch.equal(bare, plain[0])
    assert taught[0].requires_grad and not plain[0].requires_grad and none.shape == (0,)
    short, none = logps_and_entropy(hidden, head, targets, chunk_size=4, entropy=False)
    assert torch.equal(short, bare) and short.requires_grad and none.shape == (0,)


@pytest.mark.parametrize("make", HEADS, ids=NAMES)
def test_a_head_that_is_used_twice(make: Head):
    hidden, head, targets, factor = problem(make, torch.float32)
    own = [logps_and_entropy(hidden * (1 + i), head, targets, chunk_size=4)[0] for i in range(2)]
    all_logits = [naive(hidden * (1 + i), head, targets, 1.0) for i in range(2)]
    for one, other in zip(
        gradients(own[0] + own[1], factor, hidden, head),
        gradients(all_logits[0] + all_logits[1], factor, hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("make", HEADS, ids=NAMES)
def test_a_second_backward_pass_of_one_graph(make: Head):
    hidden, head, targets, factor = problem(make, torch.float32)
    logps, _ = logps_and_entropy(hidden, head, targets, chunk_size=4)
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    first = torch.autograd.grad((logps * factor).sum(), wanted, retain_graph=True)
    again = torch.autograd.grad((logps * factor).sum(), wanted)
    torch.testing.assert_close(first, again, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", HEADS, ids=NAMES)
def test_no_positions_give_no_gradient(make: Head):
    hidden, head, targets, factor = problem(make, torch.float32, m=0)
    logps, entropy = logps_and_entropy(hidden, head, targets)
    assert logps.shape == entropy.shape == (0,)
    assert all(not g.any() for g in gradients(logps, factor, hidden, head))


def test_only_the_head_learns():
    hidden, head, targets, factor = problem(linear, torch.float32)
    logps, _ = logps_and_entropy(hidden.detach(), head, targets, chunk_size=4)
    (found,) = torch.autograd.grad((logps * factor).sum(), [head.weight])
    (want,) = torch.autograd.grad((naive(hidden, head, targets, 1.0) * factor).sum(), [head.weight])
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


class Counted(nn.Module):
    """Counts its calls, and how many earlier calls' logits are still held."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.calls, self.outputs, self.most_held = head, 0, [], 0
        self.outputs: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.most_held = max(self.most_held, sum(ref() is not None for ref in self.outputs))
        logits = self.head(x)
        self.calls += 1
        self.outputs.append(weakref.ref(logits))
        return logits


def test_a_frozen_head_is_not_run_again():
    hidden, head, targets, _ = problem(lambda: Counted(frozen()), torch.float32)
    saved: list[int] = []
    logps, _ = logps_and_entropy(hidden, head, targets, chunk_size=4)
    assert head.calls == 3 and head.most_held == 0
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: saved.append(x.numel()) or x):
        logps.sum().backward()
    assert head.calls == 3 and not any(ref() is not None for ref in head.outputs)
    hidden, head, targets, _ = problem(lambda: Counted(linear()), torch.float32)
    logps_and_entropy(hidden, head, targets, chunk_size=4)[0].sum().backward()
    assert head.calls == 6  # a trained one is, wherever the shortcut does not know it


@pytest.mark.parametrize("make", [linear, frozen], ids=["linear", "frozen"])
def test_hooks_see_every_call(make: Head):
    """Strategies that divide weights gather them in hooks."""
    hidden, head, targets, factor = problem(make, torch.float32)
    want = gradients(naive(hidden, head, targets, 1.0), factor, hidden, head)
    calls: list[int] = []
    last = head if isinstance(head, nn.Linear) else head[-1]
    last.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    logps, _ = logps_and_entropy(hidden, head, targets, chunk_size=4)
    assert calls == [4, 4, 3]
    found = gradients(logps, factor, hidden, head)
    assert sorted(calls) == sorted(2 * [4, 4, 3])
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_divided_weights_are_left_to_the_head_itself():
    head = linear()
    assert heads.is_plain(head)
    head.weight.ds_id = 0  # as DeepSpeed marks what it divides
    assert not heads.is_plain(head)
    head.requires_grad_(False)
    assert heads.is_plain(head)  # frozen and gathered
    head.weight.data = torch.empty(0)
    assert not heads.is_plain(head)
    assert not heads.is_plain(lambda x: x)


def test_autocast_goes_through_the_head_itself():
    hidden, head, targets, factor = problem(linear, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = logps_and_entropy(hidden, head, targets, chunk_size=4)
        want = naive(hidden, head, targets, 1.0)
    assert torch.equal(logps, want)
    for one, other in zip(gradients(logps, factor, hidden, head), gradients(want, factor, hidden, head), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_chunks_of_a_large_vocabulary_are_smaller(monkeypatch):
    head = nn.Linear(D, V)
    assert heads.linear_rows(head, M, 4) == 4 and heads.linear_rows(head, 0, 4) == 1
    assert heads.linear_rows(head, 9, 8) == 5  # two even chunks
    monkeypatch.setattr(heads, "LOGIT_BYTES", 4 * V * 3 + 1)
    assert heads.linear_rows(head, M, 100) == 3
    monkeypatch.setattr(heads, "LOGIT_BYTES", 1)
    assert heads.linear_rows(head, M, 100) == 1


def test_the_buffer_never_exceeds_a_chunk(monkeypatch):
    hidden, head, targets, _ = problem(linear, torch.float32)
    sizes: list[int] = []
    make = heads._buffer
    monkeypatch.setattr(heads, "_buffer", lambda *a: sizes.append(make(*a).numel()) or make(*a))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        logps, _ = logps_and_entropy(hidden, head, targets, chunk_size=4)
    logps.sum().backward()
    assert sizes == [4 * V]  # one, for both passes
    assert max(saved) <= D * V  # hidden states and weights, not logits of all positions
