import math
import weakref

import pytest
import torch
from torch import nn

from egrpo.algorithm import logps_and_entropy


def problem(m=11, d=5, v=17, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    head = nn.Linear(d, v, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(v, d, generator=g))
        head.bias.copy_(torch.randn(v, generator=g))
    hidden = torch.randn(m, d, generator=g).to(dtype).requires_grad_()
    return hidden, head, torch.randint(v, (m,), generator=g)


def gradients(logps, hidden, head):
    weights = torch.arange(1, len(logps) + 1, dtype=logps.dtype)
    return torch.autograd.grad((logps * weights).sum(), [hidden, head.weight, head.bias])


def identity(x):
    return x


def test_hand_worked_probabilities():
    # Probabilities 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits of 2.
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125], [1.0, 1.0, 1.0, 1.0]]).log() + 3.0
    logps, entropy = logps_and_entropy(logits, identity, torch.tensor([1, 3]))
    torch.testing.assert_close(logps, torch.tensor([0.25, 0.25]).log())
    torch.testing.assert_close(entropy, torch.tensor([1.75 / 2, 1.0]))


def test_temperature_divides_the_logits_of_both():
    logits = torch.tensor([[math.log(4.0), 0.0]])  # at temperature 2: probabilities 2/3, 1/3
    logps, entropy = logps_and_entropy(logits, identity, torch.tensor([0]), temperature=2.0)
    assert logps.item() == pytest.approx(math.log(2 / 3), abs=1e-6)
    assert entropy.item() == pytest.approx((math.log(3) - 2 / 3 * math.log(2)) / math.log(2), abs=1e-6)


def test_infinite_logits_and_a_single_token_vocabulary():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf], [-torch.inf, 0.0, -torch.inf, -torch.inf]])
    logits.requires_grad_()
    logps, entropy = logps_and_entropy(logits, identity, torch.tensor([0, 1]))
    torch.testing.assert_close(entropy, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(logps.detach(), torch.tensor([math.log(0.5), 0.0]))
    assert torch.autograd.grad(logps.sum(), logits)[0].isfinite().all()
    assert logps_and_entropy(torch.zeros(2, 1), identity, torch.tensor([0, 0]))[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("chunk_size", [1, 3, 11, 1000])
def test_any_chunk_size_equals_the_whole(chunk_size):
    hidden, head, targets = problem()
    log_probs = (head(hidden) / 0.7).log_softmax(-1)
    want = log_probs.gather(1, targets[:, None])[:, 0]
    want_entropy = -(log_probs.exp() * log_probs).sum(-1) / math.log(17)
    logps, entropy = logps_and_entropy(hidden, head, targets, temperature=0.7, chunk_size=chunk_size)
    torch.testing.assert_close(logps, want, atol=1e-13, rtol=0)
    torch.testing.assert_close(entropy, want_entropy.detach(), atol=1e-13, rtol=0)
    assert not entropy.requires_grad
    got = gradients(logps, hidden, head)
    torch.testing.assert_close(got, gradients(want, hidden, head), atol=1e-12, rtol=0)


def test_gradcheck():
    hidden, head, targets = problem(m=4, d=3, v=5)

    def logps(h, weight):
        return logps_and_entropy(h, lambda x: x @ weight.T, targets, temperature=1.3, chunk_size=3)[0]

    assert torch.autograd.gradcheck(logps, (hidden, head.weight))


class WatchedHead(nn.Module):
    """Records the positions of every call, and how many earlier calls' logits are still held."""

    def __init__(self, head):
        super().__init__()
        self.head, self.sizes, self.outputs, self.most_held = head, [], [], 0

    def forward(self, x):
        self.most_held = max(self.most_held, sum(ref() is not None for ref in self.outputs))
        logits = self.head(x)
        self.sizes.append(len(x))
        self.outputs.append(weakref.ref(logits))
        return logits


def test_never_more_than_a_chunk_of_logits():
    m, v, chunk = 23, 301, 4
    hidden, head, targets = problem(m=m, v=v, dtype=torch.float32)
    watched, saved = WatchedHead(head), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        logps, _ = logps_and_entropy(hidden, watched, targets, chunk_size=chunk)
    chunks = [4, 4, 4, 4, 4, 3]
    assert watched.sizes == chunks
    assert not any(ref() is not None for ref in watched.outputs)  # nothing of the forward pass is kept
    logps.sum().backward()
    assert sorted(watched.sizes) == sorted(2 * chunks)  # once more a chunk, chunks no larger
    assert watched.most_held == 0
    assert max(saved, default=0) < v  # outside the chunks, not one position's logits are saved


def test_without_gradients_the_head_runs_once_and_results_are_the_same():
    hidden, head, targets = problem()
    want = logps_and_entropy(hidden, head, targets, chunk_size=4)
    watched = WatchedHead(head)
    with torch.no_grad():
        logps, entropy = logps_and_entropy(hidden, watched, targets, chunk_size=4)
    assert watched.sizes == [4, 4, 3]
    assert watched.most_held == 0
    assert not logps.requires_grad
    assert torch.equal(logps, want[0])
    assert torch.equal(entropy, want[1])


def test_no_positions():
    hidden, head, targets = problem(m=0)
    logps, entropy = logps_and_entropy(hidden, head, targets)
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()
    assert hidden.grad.shape == (0, 5)


def test_low_precision_logits_are_upcast_before_the_softmax():
    hidden, head, targets = problem(dtype=torch.bfloat16)
    logps, entropy = logps_and_entropy(hidden, head, targets, chunk_size=11)
    want = head(hidden).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert logps.dtype == entropy.dtype == torch.float32
    assert torch.equal(logps, want)
    assert gradients(logps, hidden, head)[0].dtype == torch.bfloat16


def test_rows_do_not_depend_on_their_batch():
    hidden, head, targets = problem()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    whole = logps_and_entropy(hidden, head, targets, chunk_size=4)
    mixed = logps_and_entropy(hidden[order], head, targets[order], chunk_size=3)
    torch.testing.assert_close(mixed, (whole[0][order], whole[1][order]), atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"got \[11, 5\] and \[3\]"),
        ({"hidden": torch.zeros(2, 11, 5)}, r"got \[2, 11, 5\]"),
    ],
)
def test_bad_input_is_named(change, message):
    hidden, head, targets = problem()
    with pytest.raises(ValueError, match=message):
        logps_and_entropy(**{"hidden": hidden, "head": head, "targets": targets, **change})
