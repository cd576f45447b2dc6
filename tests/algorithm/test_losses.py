import math

import pytest
import torch
from torch import nan, tensor

from egrpo.algorithm import k3_kl, policy_loss
from egrpo.algorithm.losses import bounded_exp


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_batch(seed=0, n=4, t=6):
    g = torch.Generator().manual_seed(seed)
    logps, ref, advantages = (torch.randn(n, t, dtype=torch.float64, generator=g) for _ in range(3))
    return logps, ref, advantages, torch.rand(n, t, generator=g) < 0.7


def value_and_grad(logps, *args, **settings):
    logps = logps.clone().requires_grad_()
    loss, metrics = policy_loss(logps, *args, **settings)
    return loss.detach(), torch.autograd.grad(loss, logps)[0], metrics


def test_k3_hand_worked():
    kl = k3_kl(double([0.0, 0.0, -1.0]), double([math.log(2.0), -math.log(2.0), -1.0]))
    assert kl.tolist()[0] == pytest.approx([1 - math.log(2.0), math.log(2.0) - 0.5, 0.0], abs=1e-15)
    assert k3_kl(tensor([0.0]), tensor([1e-4])).item() == pytest.approx(5e-9, rel=1e-3)  # no cancellation in float32


def test_on_policy_hand_worked():
    logps, ref = double([-1.0, -2.0], [-3.0, 0.0]), double([-1.0 + math.log(2.0), -2.0], [-3.0, 0.0])
    mask = tensor([[True, True], [True, False]])
    loss, grad, metrics = value_and_grad(logps, ref, double([1.0, -2.0], [4.0, 9.0]), mask, beta=0.3)
    kl = (1 - math.log(2.0)) / 3
    assert loss.item() == pytest.approx(-(1 - 2 + 4) / 3 + 0.3 * kl, abs=1e-15)
    assert metrics["kl"].item() == pytest.approx(kl, abs=1e-15)
    assert metrics["clip_fraction"].item() == 0.0
    # d/dlogp = -(A - beta (exp(ref - logp) - 1) * -1) / 3: the first token's k3 pulls with 1 - 2 = -1.
    want = double([(-1 - 0.3) / 3, 2 / 3], [-4 / 3, 0.0])
    torch.testing.assert_close(grad, want, atol=1e-15, rtol=0)


def test_a_denominator_for_each_sequence_hand_worked():
    # Advantages 1, -2 and 4 on 2 and 1 counted tokens: ((1 - 2) / 2 + 4 / 1) / 2 sequences.
    logps, mask = double([-1.0, -2.0], [-3.0, 0.0]), tensor([[True, True], [True, False]])
    own = mask.sum(1) * 2
    loss, grad, metrics = value_and_grad(
        logps, logps - 1, double([1.0, -2.0], [4.0, 9.0]), mask, beta=0.0, denominator=own
    )
    assert loss.item() == pytest.approx(-((1 - 2) / 2 + 4) / 2, abs=1e-15)
    torch.testing.assert_close(grad, double([-1 / 4, 2 / 4], [-4 / 2, 0.0]), atol=1e-15, rtol=0)
    assert metrics["kl"].item() == pytest.approx(math.exp(-1), abs=1e-12)  # k3 of 1 nat on every token: its mean
    with pytest.raises(ValueError, match="denominator has shape"):
        policy_loss(logps, logps, logps, mask, denominator=tensor([1.0, 2.0, 3.0]))


def test_off_policy_clipping_hand_worked():
    # Ratios 2, 0.5, 2, 0.5, 1.1 to bounds 0.8 and 1.3; only a gain beyond a bound is cut.
    ratio = double([2.0, 0.5, 2.0, 0.5, 1.1])
    advantages = double([1.0, -1.0, -1.0, 1.0, 1.0])
    mask = torch.ones(1, 5, dtype=torch.bool)
    old = double([-1.0] * 5)
    logps = old + ratio.log()

    def run(**clip):
        return value_and_grad(logps, logps, advantages, mask, beta=0.0, old_logps=old, denominator=1, **clip)

    loss, grad, metrics = run(clip_low=0.2, clip_high=0.3)
    assert loss.item() == pytest.approx(-(1.3 - 0.8 - 2.0 + 0.5 + 1.1), abs=1e-12)
    torch.testing.assert_close(grad, double([0.0, 0.0, 2.0, -0.5, -1.1]), atol=1e-12, rtol=0)
    assert metrics["clip_fraction"].item() == 2.0  # two tokens over the denominator given
    assert run(clip_high=0.3)[0].item() == pytest.approx(-(1.3 - 0.5 - 2.0 + 0.5 + 1.1), abs=1e-12)
    assert run(clip_low=0.2)[0].item() == pytest.approx(-(2.0 - 0.8 - 2.0 + 0.5 + 1.1), abs=1e-12)
    assert run()[0].item() == pytest.approx(-(2.0 - 0.5 - 2.0 + 0.5 + 1.1), abs=1e-12)


def test_old_logps_of_this_very_policy_are_the_on_policy_case():
    logps, ref, advantages, mask = random_batch()
    on = value_and_grad(logps, ref, advantages, mask)
    for clip in ({}, {"clip_low": 0.2, "clip_high": 0.2}, {"clip_low": 0.0}):
        for off in (
            value_and_grad(logps, ref, advantages, mask, old_logps=logps, **clip),
            value_and_grad(logps, ref, advantages, mask, **clip),
        ):
            torch.testing.assert_close(off[:2], on[:2], atol=1e-15, rtol=0)


def test_gradcheck():
    logps, ref, advantages, mask = random_batch(1)
    old = logps + 0.3 * torch.sin(torch.arange(24.0, dtype=torch.float64)).view(4, 6)

    def loss(x):
        return policy_loss(x, ref, advantages, mask, beta=0.2, old_logps=old, clip_low=0.1, clip_high=0.15)[0]

    assert torch.autograd.gradcheck(loss, logps.requires_grad_())


@pytest.mark.parametrize("garbage", [nan, torch.inf, -torch.inf, 1e30])
def test_garbage_at_masked_positions_reaches_nothing(garbage):
    logps, ref, advantages, mask = random_batch(2)
    old = logps - 0.1
    settings = {"clip_low": 0.2, "clip_high": 0.2}
    want = value_and_grad(logps, ref, advantages, mask, old_logps=old, **settings)
    dirty = [torch.where(mask, x, garbage) for x in (logps, ref, advantages, old)]
    got = value_and_grad(dirty[0], dirty[1], dirty[2], mask, old_logps=dirty[3], **settings)
    assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))
    assert all(torch.equal(got[2][key], want[2][key]) for key in want[2])
    assert not got[1][~mask].any()


@pytest.mark.parametrize("denominator", [None, 0, 0.0, tensor(0)])
def test_all_masked_batch_is_zero_with_zero_gradient(denominator):
    logps, ref, advantages, mask = random_batch(3)
    loss, grad, metrics = value_and_grad(logps * nan, ref, advantages, torch.zeros_like(mask), denominator=denominator)
    assert loss.item() == 0.0
    assert not grad.any()
    assert {key: value.item() for key, value in metrics.items()} == {"kl": 0.0, "clip_fraction": 0.0}


def test_micro_batches_with_one_denominator_sum_to_the_batch():
    logps, ref, advantages, mask = random_batch(4)
    whole = value_and_grad(logps, ref, advantages, mask)
    parts = [
        value_and_grad(logps[rows], ref[rows], advantages[rows], mask[rows], denominator=mask.sum())
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(p[0] for p in parts), whole[0], atol=1e-15, rtol=0)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), whole[1], atol=1e-15, rtol=0)
    torch.testing.assert_close(sum(p[2]["kl"] for p in parts), whole[2]["kl"], atol=1e-15, rtol=0)


def test_gradient_reaches_the_policy_alone_and_metrics_are_detached_scalars():
    logps, ref, advantages, mask = random_batch(5)
    inputs = [x.clone().requires_grad_() for x in (logps, ref, advantages, logps - 0.1)]
    loss, metrics = policy_loss(inputs[0], inputs[1], inputs[2], mask, old_logps=inputs[3])
    loss.backward()
    assert inputs[0].grad is not None
    assert all(x.grad is None for x in inputs[1:])
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())


def test_low_precision_is_computed_in_float32():
    logps, ref, advantages, mask = (x.bfloat16() if x.is_floating_point() else x for x in random_batch(6))
    loss, grad, _ = value_and_grad(logps, ref, advantages, mask)
    want, *_ = value_and_grad(logps.float(), ref.float(), advantages.float(), mask)
    assert loss.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert torch.equal(loss, want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": -0.1}, "clip_low is -0.1"),
        ({"clip_low": 1.5}, "clip_low is 1.5"),
        ({"clip_high": -0.1}, "clip_high is -0.1"),
        ({"old_logps": torch.zeros(2, 2)}, r"old_logps has shape \[2, 2\]"),
    ],
)
def test_bad_settings_are_named(settings, message):
    logps, ref, advantages, mask = random_batch()
    with pytest.raises(ValueError, match=message):
        policy_loss(logps, ref, advantages, mask, **settings)
    with pytest.raises(ValueError, match="token_advantages has shape"):
        policy_loss(logps, ref, advantages[:, 0], mask)


@pytest.mark.parametrize("nats", [89.0, 200.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.2, "clip_high": 0.2}])
def test_extreme_ratios_leave_loss_and_gradient_finite_in_float32(nats, advantage, clip):
    logps = tensor([[-1.0, -1.0 - nats]])
    old, ref = tensor([[-1.0 - nats, -1.0]]), tensor([[-1.0, -1.0]])
    advantages, mask = torch.full((1, 2), advantage), torch.ones(1, 2, dtype=torch.bool)
    loss, grad, metrics = value_and_grad(logps, ref, advantages, mask, beta=0.01, old_logps=old, **clip)
    assert loss.isfinite() and grad.isfinite().all() and metrics["kl"].isfinite()
    assert grad[0, 1] < 0  # KL still pulls up what the reference finds far likelier
    if advantage == 1:
        assert (grad[0, 0] == 0) if clip else (grad[0, 0] < 0)
    if advantage == -1:
        assert grad[0, 0] > 0  # a bad token that became far likelier is still pushed down


def test_ordinary_ratios_are_those_of_exp_to_the_last_digit():
    logps, old = -40 * torch.rand(4, 50, generator=torch.Generator().manual_seed(0)), torch.full((4, 50), -20.0)
    x = (logps - old).requires_grad_()
    for exponential in (torch.exp, torch.expm1):
        bounded, plain = bounded_exp(x, exponential), exponential(x)
        assert torch.equal(bounded, plain)
        grads = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (bounded, plain)]
        assert torch.equal(*grads)
