"""One training step, taken apart."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from egrpo.algorithm import group_advantages
from egrpo.data import read_prompts
from egrpo.training import GRPOModule
from egrpo.training.micro_batches import micro_batches
from egrpo.types import Rollout
from tests.training.pieces import trained_weights

FOUR = "rollout.group_size=4"
ADVANTAGES = torch.tensor([1.5, -0.5, 0.25, -1.25, 0.0, 1.0, -2.0, 1.0])


def uneven(rollout: Rollout) -> Rollout:
    """The rollout with plans of 1, 2, 3, ... counted tokens, as a trained model writes them."""
    lengths = torch.arange(len(rollout))[:, None] % rollout.text.mask.shape[1] + 1
    mask = rollout.text.mask & (torch.arange(rollout.text.mask.shape[1]) < lengths)
    return replace(rollout, text=replace(rollout.text, mask=mask))


@pytest.fixture(scope="module")
def drawn(runs, prompts, tmp_path_factory: pytest.TempPathFactory) -> tuple[GRPOModule, Rollout]:
    """A module and eight of its samples of two prompts."""
    module = runs.module(tmp_path_factory.mktemp("step"), FOUR)
    return module, uneven(module.sample(read_prompts(str(prompts / "train.jsonl"))[:2], step=0))


@torch.no_grad()
def policy_logps(module: GRPOModule, rollout: Rollout) -> torch.Tensor:
    return module.policy.score(rollout, temperature=module.rollout_settings.temperature).logps


@pytest.mark.parametrize("policy", ["entropy_guided", "budget_balanced"])
@pytest.mark.parametrize("updates, token_mean", [(1, "batch"), (2, "batch"), (1, "sequence")])
def test_gradients_do_not_depend_on_micro_batches(runs, drawn, tmp_path, policy: str, updates: int, token_mean: str):
    module, rollout = drawn
    shaper = runs.module(tmp_path, FOUR, f"entropy_policy={policy}").entropy_policy
    sampled = rollout.sampled
    token_advantages, _ = shaper(ADVANTAGES, sampled.entropy, sampled.mask, sampled.is_image)
    module.manual_backward = lambda loss: loss.backward()  # Lightning's own needs a trainer
    results: dict[int | None, tuple[torch.Tensor, dict[str, Any]]] = {}
    for size in (None, 1, 3, 4):
        module.objective = replace(module.objective, micro_batch_size=size, beta=0.05, token_mean=token_mean)
        reference = policy_logps(module, rollout) - 0.1
        old = None if updates == 1 else policy_logps(module, rollout) + 0.02
        module.policy.zero_grad()
        metrics, logps = module.backward_pass(rollout, token_advantages, reference, old)
        torch.testing.assert_close(logps, policy_logps(module, rollout), atol=1e-5, rtol=0)
        grads = [p.grad.flatten() for p in module.policy.parameters() if p.grad is not None]
        results[size] = torch.cat(grads), {name: float(value) for name, value in metrics.items()}
    whole, metrics = results[None]
    assert whole.abs().max() > 1e-3 and metrics["kl"] > 1e-3
    for size in (1, 3, 4):
        torch.testing.assert_close(results[size][0], whole, atol=1e-6, rtol=0)
        assert results[size][1] == pytest.approx(metrics, abs=1e-5)


class Saved:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_one_graph_is_gone_before_the_next_is_made(drawn, monkeypatch):
    module, rollout = drawn
    module.manual_backward = lambda loss: loss.backward()
    module.objective = replace(module.objective, micro_batch_size=3)
    kept: list[Any] = []
    alive: list[int] = []

    def keep(tensor: torch.Tensor) -> Saved:
        kept.append(weakref.ref(saved := Saved(tensor)))
        return saved

    def begin(last: bool) -> None:
        alive.append(sum(ref() is not None for ref in kept))

    monkeypatch.setattr(module.engine, "next_pass", begin)
    reference = torch.zeros_like(rollout.sampled.logps)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor):
        module.backward_pass(rollout, torch.ones_like(reference), reference, None)
    assert alive == [0] * 6 and len(kept) > 100  # plans and images of three micro-batches


def test_micro_batches_hold_rows_of_like_length(drawn):
    module, rollout = drawn
    lengths = rollout.image.context_mask.sum(1) + rollout.text.context_mask.sum(1) + rollout.text.mask.sum(1)
    parts = micro_batches(rollout, 3, by_length=True)
    assert sorted(torch.cat(parts).tolist()) == list(range(8)) and [len(part) for part in parts] == [3, 3, 2]
    ordered = lengths[torch.cat(parts)].tolist()
    assert ordered == sorted(lengths.tolist(), reverse=True) != lengths.tolist()
    for given in (micro_batches(rollout, 3, by_length=False), micro_batches(rollout, None, by_length=True)):
        assert torch.cat(given).tolist() == list(range(8))
    module.objective = replace(module.objective, micro_batch_size=3)
    assert [part.tolist() for part in module.micro_batches(rollout)] == [part.tolist() for part in parts]
    # Scores come back in the rollout's order.
    torch.testing.assert_close(module.reference_logps(rollout), policy_logps(module, rollout), atol=1e-5, rtol=0)
    module.policy.padding = "published"  # rows depend on their neighbours
    try:
        assert torch.cat(module.micro_batches(rollout)).tolist() == list(range(8))
    finally:
        module.policy.padding = "exact"


def test_nobody_computes_entropies_that_nobody_reads(drawn, monkeypatch):
    module, rollout = drawn
    module.manual_backward = lambda loss: loss.backward()
    monkeypatch.setattr("egrpo.algorithm.heads.entropy_of", lambda log_probs: pytest.fail("an entropy"))
    reference = module.reference_logps(rollout)
    module.backward_pass(rollout, torch.ones_like(reference), reference, None)


def spied(module: GRPOModule) -> tuple[list[dict[str, Any]], list[tuple[int, list[str]]]]:
    """What every backward pass and every rollout of the module will have seen."""
    passes: list[dict[str, Any]] = []
    rollouts: list[tuple[int, list[str]]] = []
    backward_pass, sample = module.backward_pass, module.sample

    def backward(rollout, advantages, ref_logps, old_logps):
        step, before = module.global_step, trained_weights(module)
        metrics, logps = backward_pass(rollout, advantages, ref_logps, old_logps)
        given = (rollout, advantages, ref_logps, old_logps)
        passes.append({"step": step, "weights": before, "given": given, "logps": logps, **metrics})
        return metrics, logps

    def sampled(records, step):
        rollouts.append((step, [record.prompt for record in records]))
        return sample(records, step)

    module.backward_pass, module.sample = backward, sampled
    return passes, rollouts


def test_several_updates_of_one_rollout(runs, prompts, tmp_path):
    overrides = (
        FOUR,
        "objective.updates_per_rollout=3",
        "objective.clip_low=1e-3",
        "objective.clip_high=1e-3",
        "trainer.max_steps=6",
    )
    module = runs.module(tmp_path, *overrides)
    passes, rollouts = spied(module)
    runs.fit(tmp_path, *overrides, module=module)
    assert [p["step"] for p in passes] == [0, 1, 2, 3, 4, 5] and module.global_step == 6
    assert [float(p["clip_fraction"]) == 0 for p in passes] == [True, False, False, True, False, False]
    # Rollouts count on, and each takes its own prompts in the stream's order.
    assert [step for step, _ in rollouts] == [0, 1]
    assert not set(rollouts[0][1]) & set(rollouts[1][1])
    for first, *later in (passes[:3], passes[3:]):
        rollout, _, _, old = first["given"]
        assert old is None  # on-policy: the ratio is 1
        for name, value in first["weights"].items():
            module.policy.get_parameter(name).data.copy_(value)
        torch.testing.assert_close(policy_logps(module, rollout), first["logps"], atol=1e-6, rtol=0)
        for update in later:  # the ratio is to the policy that drew the rollout, and token advantages stay
            assert update["given"][3] is first["logps"] and update["given"][1] is first["given"][1]
            assert not torch.equal(update["logps"], first["logps"])


def plain_logps(policy: Any, rollout: Rollout, row: int) -> torch.Tensor:
    """Log-probabilities of one sample's counted tokens, straight from the model: one sequence, no padding, no masks."""
    inner = policy.model.model
    embed = inner.language_model.get_input_embeddings()

    def run(embeds: torch.Tensor, head: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        hidden = inner.language_model(inputs_embeds=embeds[None]).last_hidden_state[0]
        logits = head(hidden[len(embeds) - len(tokens) :])
        return log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]

    text, image = rollout.text, rollout.image
    plan = text.tokens[row][text.mask[row]]
    context = embed(text.context_ids[row][text.context_mask[row]])
    first = run(torch.cat([context, embed(plan[:-1])]), policy.model.lm_head, plan)
    codes = image.tokens[row]
    context = embed(image.context_ids[row][image.context_mask[row]])
    fed = inner.generation_aligner(inner.generation_embeddings(codes[:-1]))
    second = run(torch.cat([context, fed]), inner.generation_head, codes)
    return torch.cat([first, second])


def test_one_step_of_plain_policy_gradient_by_hand(runs, tmp_path):
    overrides = (
        FOUR,
        "entropy_policy=uniform",
        "objective.beta=0",
        "objective.max_grad_norm=1e9",
        "trainer.max_steps=1",
    )
    module, untouched = runs.module(tmp_path, *overrides), runs.module(tmp_path, *overrides).policy
    module.make_optimizer = partial(torch.optim.SGD, lr=0.5)
    runs.fit(tmp_path, *overrides, module=module)
    _, rollout, table = module.last_rollout

    groups = table.total.view(2, 4)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    logps = [plain_logps(untouched, rollout, row) for row in range(8)]
    loss = sum(-(a * own).sum() for a, own in zip(advantages, logps)) / sum(len(own) for own in logps)
    names = [name for name, p in untouched.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [untouched.get_parameter(name) for name in names], allow_unused=True)
    assert max(g.abs().max() for g in gradients if g is not None) > 1e-3
    for name, gradient in zip(names, gradients):
        change = module.policy.get_parameter(name) - untouched.get_parameter(name)
        expected = torch.zeros_like(change) if gradient is None else -0.5 * gradient
        torch.testing.assert_close(change, expected, atol=2e-6, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_advantages_reach_the_samples_they_belong_to(runs, tmp_path):
    """The reward table, its groups and the rollout stand in one order."""
    module = runs.module(tmp_path, FOUR)
    passes, _ = spied(module)
    runs.fit(tmp_path, FOUR, "trainer.max_steps=1", module=module)
    records, rollout, table = module.last_rollout
    assert [record.prompt for record in records] == rollout.prompts
    assert rollout.prompts == [p for p in dict.fromkeys(rollout.prompts) for _ in range(4)]
    grey = (rollout.pixels.float() * torch.tensor([0.299, 0.587, 0.114])).sum(-1).mean((1, 2)) / 255
    torch.testing.assert_close(table.total, grey, atol=0.01, rtol=0)
    sampled = rollout.sampled
    advantages = group_advantages(table.total, 4)
    expected, _ = module.entropy_policy(advantages, sampled.entropy, sampled.mask, sampled.is_image)
    assert torch.equal(passes[0]["given"][1], expected) and expected.abs().max() > 0
