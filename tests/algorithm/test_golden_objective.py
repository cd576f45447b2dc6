"""The published procedure, end to end: rewards -> advantages -> token advantages -> loss and gradients."""

import json
from functools import partial

import pytest
import torch

from egrpo.algorithm import entropy_policies, group_advantages, policy_loss
from tests.shared_data import shared_path

TOLERANCE = {"atol": 1e-7, "rtol": 0.0}
POLICIES = {
    "uniform": entropy_policies.uniform,
    "entropy_guided": entropy_policies.entropy_guided,
    "entropy_guided_quantile": partial(entropy_policies.entropy_guided, threshold="quantile"),
    "text_only": partial(entropy_policies.entropy_guided, segments=["text"]),
    "image_only": partial(entropy_policies.entropy_guided, segments=["image"]),
}
VARIANTS = {"padding_ignored": False, "padding_ranked": True}
PAIRS = [("uniform", None)] + [(name, variant) for name in POLICIES if name != "uniform" for variant in VARIANTS]


def load(name):
    return json.loads(shared_path("golden", f"objective_{name}.json").read_text())


def both(case, key):
    """Text then image along T, float64."""
    return torch.cat([torch.tensor(case[f"{s}_{key}"], dtype=torch.float64) for s in ("text", "image")], dim=1)


def run(case, policy):
    text_mask = torch.tensor(case["text_mask"]).bool()
    image = torch.ones(len(text_mask), len(case["image_logps"][0]), dtype=torch.bool)
    mask = torch.cat([text_mask, image], dim=1)
    is_image = torch.cat([torch.zeros_like(text_mask), image], dim=1)
    logps = both(case, "logps").requires_grad_()
    advantages = group_advantages(torch.tensor(case["rewards"], dtype=torch.float64), case["num_generations"])
    entropy = (
        both(case, "entropy") if "text_entropy" in case else torch.full_like(logps, torch.nan)
    )  # uniform reads none
    shaped, _ = policy(advantages, entropy, mask, is_image)
    loss, metrics = policy_loss(logps, both(case, "ref_logps"), shaped, mask, beta=case["beta"])
    (grad,) = torch.autograd.grad(loss, logps)
    return advantages, shaped, loss, metrics["kl"], grad


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_published_values(name, variant):
    cases = load(name)
    assert cases
    for case in cases:
        policy = POLICIES[name]
        expected = case["expected"]
        if variant is not None:
            policy, expected = partial(policy, rank_padding=VARIANTS[variant]), expected[variant]
        advantages, shaped, loss, kl, grad = run(case, policy)
        want = {key: torch.tensor(value, dtype=torch.float64) for key, value in expected.items()}
        if "advantages" in want:
            torch.testing.assert_close(advantages, want["advantages"], **TOLERANCE)
        else:
            want_shaped = torch.cat([want["text_advantages"], want["image_advantages"]], dim=1)
            torch.testing.assert_close(shaped, want_shaped, **TOLERANCE)
        torch.testing.assert_close(loss.detach(), want["loss"], **TOLERANCE)
        torch.testing.assert_close(kl, want["mean_kl"], **TOLERANCE)
        want_grad = torch.cat([want["grad_text_logps"], want["grad_image_logps"]], dim=1)
        torch.testing.assert_close(grad, want_grad, **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "uniform"])
def test_neighbouring_procedures_differ(name):
    """The golden can fail: every other policy gives other token advantages on some case."""
    cases = load(name)
    for other, policy in POLICIES.items():
        if other != name:
            same = [torch.equal(run(case, policy)[1], run(case, POLICIES[name])[1]) for case in cases]
            assert not all(same), other
