import math
from functools import partial

import pytest
import torch

from egrpo.algorithm.entropy_policies import budget_balanced, entropy_guided, ranks_padding, top_entropy, uniform

SHAPERS = [uniform, entropy_guided, budget_balanced, top_entropy]


def bands_by_rule(h, n, high, low, name, threshold):
    """One sequence and segment, ranked entropies `h`: (high threshold, low threshold), straight from the rule text."""
    h = sorted(h)
    if threshold == "quantile":
        return tuple(torch.tensor(h).quantile(q).item() for q in (1 - high, low))
    if name == "text":
        return h[n - max(1, math.floor(high * n))], h[min(n - 1, max(1, math.floor(low * n)))]
    return h[math.floor((1 - high) * n)], h[math.floor(low * n)]


def by_rule(entropy, mask, is_image, high, low, segments, threshold, rank_padding=False):
    """(high, low) as sets of (i, t), by loops."""
    above, below = set(), set()
    for i in range(len(entropy)):
        for name in segments:
            inside = [t for t in range(entropy.shape[1]) if is_image[i, t].item() == (name == "image")]
            counted = [t for t in inside if mask[i, t]]
            ranked = inside if rank_padding and name == "text" else counted
            if counted:
                h = [entropy[i, t].item() for t in ranked]
                top, bottom = bands_by_rule(h, len(h), high, low, name, threshold)
                above |= {(i, t) for t in counted if entropy[i, t].item() > top}
                below |= {(i, t) for t in counted if entropy[i, t].item() < bottom}
    return above, below


def reference(advantages, entropy, mask, is_image, bonus, above, below):
    """Token advantages from the bands; `bonus(A, H)`."""
    out = torch.zeros_like(entropy)
    for i in range(len(entropy)):
        for t in range(entropy.shape[1]):
            if mask[i, t] and (i, t) not in below:
                a = advantages[i].item()
                out[i, t] = a + (bonus(a, entropy[i, t].item()) if (i, t) in above else 0.0)
    return out


def batch(seed, n=5, text=9, image=12, density=0.7, dtype=torch.float32):
    """Random masks, rows with 0, 1 and 2 text tokens among them; a text part that may be absent."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, text + image, generator=g) < density
    if text and n >= 3:
        for row in range(3):
            mask[row, :text] = torch.arange(text) < row
    if n > 3:
        mask[3] = False
    is_image = (torch.arange(text + image) >= text).expand(n, -1)
    advantages = torch.randn(n, generator=g).to(dtype)
    return advantages, torch.rand(n, text + image, generator=g).to(dtype), mask, is_image


def floats(metrics):
    return {key: float(value) for key, value in metrics.items()}


# Hand-worked: one sequence, 5 text tokens of which the last is padding, 5 image tokens.
A = torch.tensor([2.0])
H = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0, 0.9, 0.05, 0.5, 0.7, 0.6]])
MASK = torch.tensor([[True] * 4 + [False] + [True] * 5])
IS_IMAGE = torch.tensor([[False] * 5 + [True] * 5])


def test_uniform_hand_worked():
    shaped, metrics = uniform(A, H, MASK, IS_IMAGE)
    assert shaped.tolist() == [[2.0] * 4 + [0.0] + [2.0] * 5]
    shares = {"share_bonus": 0.0, "share_plain": 1.0, "share_excluded": 0.0}
    want = shares | {f"{key}_{name}": value for key, value in shares.items() for name in ("text", "image")}
    assert floats(metrics) == want | {"bonus_mass": 0.0}


def test_entropy_guided_hand_worked():
    # Text, n = 4: high = h[2] = 0.3, low = h[1] = 0.2. Image, n = 5: high = h[2] = 0.6, low = h[1] = 0.5.
    shaped, metrics = entropy_guided(A, H, MASK, IS_IMAGE)
    want = [0.0, 2.0, 2.0, 2.12, 0.0, 2.27, 0.0, 2.0, 2.21, 2.0]
    assert shaped[0].tolist() == pytest.approx(want, abs=1e-6)
    assert floats(metrics) == pytest.approx(
        {
            "share_bonus": 3 / 9,
            "share_plain": 4 / 9,
            "share_excluded": 2 / 9,
            "share_bonus_text": 1 / 4,
            "share_plain_text": 2 / 4,
            "share_excluded_text": 1 / 4,
            "share_bonus_image": 2 / 5,
            "share_plain_image": 2 / 5,
            "share_excluded_image": 1 / 5,
            "threshold_high_text": 0.3,
            "threshold_low_text": 0.2,
            "threshold_high_image": 0.6,
            "threshold_low_image": 0.5,
            "bonus_mass": (0.12 + 0.27 + 0.21) / 9,
        },
        abs=1e-6,
    )


def test_bonus_is_capped_by_the_size_of_the_advantage_and_positive_for_losers():
    shaped, _ = entropy_guided(torch.tensor([-0.5]), H, MASK, IS_IMAGE)  # cap 0.3 * 0.5 = 0.15
    assert shaped[0, [3, 5, 8]].tolist() == pytest.approx([-0.5 + 0.12, -0.5 + 0.15, -0.5 + 0.15], abs=1e-6)
    shaped, _ = entropy_guided(torch.tensor([-0.5]), H, MASK, IS_IMAGE, bonus_scale=0.1, bonus_cap=1.0)
    assert shaped[0, [3, 5, 8]].tolist() == pytest.approx([-0.46, -0.41, -0.43], abs=1e-6)


def test_ranked_padding_hand_worked():
    # The padding's 0.0 makes n = 5: high = h[3] = 0.3, low = h[1] = 0.1, so no text token is excluded.
    shaped, metrics = entropy_guided(A, H, MASK, IS_IMAGE, rank_padding=True)
    assert shaped[0, :5].tolist() == pytest.approx([2.0, 2.0, 2.0, 2.12, 0.0], abs=1e-6)
    assert metrics["threshold_low_text"].item() == pytest.approx(0.1)
    assert metrics["share_excluded_text"].item() == 0.0


def test_budget_balanced_hand_worked():
    # Sequence 0 as above, both its lows excluded: |A| |low| / T = 2 * 2 / 9; high entropies 0.4 + 0.9 + 0.7 over 9.
    # Sequence 1: one counted token, no bands, so it changes nothing.
    mask = torch.cat([MASK, torch.zeros_like(MASK)])
    mask[1, 7] = True
    inputs = torch.tensor([2.0, -3.0]), H.expand(2, 10), mask, IS_IMAGE.expand(2, 10)
    shaped, metrics = budget_balanced(*inputs)
    scale = (2 * 2 / 9) / (2.0 / 9)
    assert metrics["bonus_lambda"].item() == pytest.approx(scale, abs=1e-6)
    want = [0.0, 2.0, 2.0, 2 + scale * 0.4, 0.0, 2 + scale * 0.9, 0.0, 2.0, 2 + scale * 0.7, 2.0]
    assert shaped[0].tolist() == pytest.approx(want, abs=1e-6)
    assert shaped[1].tolist() == pytest.approx([0.0] * 7 + [-3.0] + [0.0] * 2)
    assert metrics["bonus_mass"].item() == pytest.approx(scale * 2.0 / 10, abs=1e-6)
    assert budget_balanced(*inputs, kappa=0.25)[1]["bonus_lambda"].item() == pytest.approx(scale / 4, abs=1e-6)


@pytest.mark.parametrize("change", [{"advantages": torch.zeros(1)}, {"entropy": torch.zeros(1, 10)}])
def test_budget_balanced_without_budget_or_entropy_gives_no_bonus(change):
    shaped, metrics = budget_balanced(**{"advantages": A, "entropy": H, "mask": MASK, "is_image": IS_IMAGE, **change})
    assert metrics["bonus_lambda"].item() == 0.0
    assert metrics["bonus_mass"].item() == 0.0
    assert shaped.isfinite().all()


def test_budget_is_given_back_in_full():
    """Averaged per sequence, the bonus equals the advantage taken: what lambda* is for."""
    advantages, entropy, mask, is_image = batch(0, dtype=torch.float64)
    shaped, _ = budget_balanced(advantages, entropy, mask, is_image)
    above, below = by_rule(entropy, mask, is_image, 0.5, 0.2, ("text", "image"), "order")
    tokens = mask.sum(1).clamp(min=1)
    given = sum(((shaped[i, t] - advantages[i]) / tokens[i]).item() for i, t in above)
    taken = sum((advantages[i].abs() / tokens[i]).item() for i, _ in below)
    assert taken > 0.1
    assert given == pytest.approx(taken, abs=1e-12)


def test_top_entropy_hand_worked():
    shaped, metrics = top_entropy(A, H, MASK, IS_IMAGE, fraction=0.5)
    assert shaped.tolist() == [[0.0, 0.0, 2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0, 0.0]]
    assert metrics["share_excluded"].item() == pytest.approx(5 / 9)
    assert metrics["share_plain_image"].item() == pytest.approx(2 / 5)
    assert metrics["threshold_high_text"].item() == pytest.approx(0.3)
    assert "threshold_low_text" not in metrics
    shaped, _ = top_entropy(A, H, MASK, IS_IMAGE, fraction=0.0)  # still one a segment
    assert shaped.nonzero()[:, 1].tolist() == [3, 5]
    tied, _ = top_entropy(A, torch.full_like(H, 0.5), MASK, IS_IMAGE)
    assert torch.equal(tied, MASK * 2.0)


@pytest.mark.parametrize("threshold", ["order", "quantile"])
def test_threshold_metrics_average_the_sequences_that_have_such_tokens(threshold):
    mask = torch.cat([MASK, MASK & IS_IMAGE, torch.zeros_like(MASK)])
    inputs = torch.ones(3), torch.cat([H, H / 2, H]), mask, IS_IMAGE.expand(3, 10)
    _, alone = entropy_guided(*(x[:1] for x in inputs), threshold=threshold)
    _, metrics = entropy_guided(*inputs, threshold=threshold)
    for key in ("threshold_high", "threshold_low"):
        assert metrics[f"{key}_text"].item() == pytest.approx(alone[f"{key}_text"].item())
        assert metrics[f"{key}_image"].item() == pytest.approx(0.75 * alone[f"{key}_image"].item())


SETTINGS = [
    {"high_fraction": 0.5, "low_fraction": 0.2, "segments": ("text", "image"), "threshold": "order"},
    {"high_fraction": 0.25, "low_fraction": 0.5, "segments": ("image",), "threshold": "order"},
    {"high_fraction": 0.5, "low_fraction": 0.2, "segments": ("text",), "threshold": "order"},
    {"high_fraction": 0.35, "low_fraction": 0.3, "segments": ("image", "text"), "threshold": "quantile"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sizes", [(9, 12), (0, 12), (9, 0), (1, 1), (20, 31)])
@pytest.mark.parametrize("rank_padding", [False, True])
def test_vectorised_is_the_loop_on_random_masks(settings, sizes, rank_padding):
    rule = [settings[key] for key in ("high_fraction", "low_fraction", "segments", "threshold")]
    for seed in range(6):
        inputs = batch(seed, text=sizes[0], image=sizes[1])
        advantages, entropy, mask, is_image = inputs
        above, below = by_rule(entropy, mask, is_image, *rule, rank_padding)
        shaped, metrics = entropy_guided(*inputs, bonus_scale=0.4, bonus_cap=0.2, rank_padding=rank_padding, **settings)
        want = reference(*inputs, lambda a, h: min(0.2 * abs(a), 0.4 * h), above, below)
        torch.testing.assert_close(shaped, want)
        tokens = max(1, int(mask.sum()))
        assert metrics["share_bonus"].item() == pytest.approx(len(above) / tokens)
        assert metrics["share_excluded"].item() == pytest.approx(len(below) / tokens)
        for index, name in enumerate(("text", "image")):
            assert (f"share_plain_{name}" in metrics) == bool((mask & (is_image == bool(index))).any())
        if not rank_padding:
            counts = mask.sum(1).clamp(min=1).tolist()
            taken = sum(abs(advantages[i].item()) / counts[i] for i, _ in below)
            weighed = sum(entropy[i, t].item() / counts[i] for i, t in above)
            scale = 0.7 * taken / weighed if weighed else 0.0
            shaped, metrics = budget_balanced(*inputs, kappa=0.7, **settings)
            torch.testing.assert_close(shaped, reference(*inputs, lambda _, h, s=scale: s * h, above, below))
            assert metrics["bonus_lambda"].item() == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.7, 1.0])
def test_top_entropy_is_the_loop_on_random_masks(fraction):
    for seed in range(6):
        advantages, entropy, mask, is_image = batch(seed)
        want = torch.zeros_like(entropy)
        for i in range(len(entropy)):
            for image in (False, True):
                counted = [t for t in range(entropy.shape[1]) if mask[i, t] and is_image[i, t].item() == image]
                counted.sort(key=lambda t: -entropy[i, t].item())
                want[i, counted[: max(1, math.floor(fraction * len(counted) + 1e-9))]] = advantages[i]
        assert torch.equal(top_entropy(advantages, entropy, mask, is_image, fraction=fraction)[0], want)


@pytest.mark.parametrize("policy", SHAPERS)
def test_row_order_padding_and_garbage_change_nothing(policy):
    inputs = batch(7)
    advantages, entropy, mask, is_image = inputs
    want, metrics = policy(*inputs)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(policy(*(x[order] for x in inputs))[0], want[order])
    dirty = torch.where(mask, entropy, torch.nan)
    torch.testing.assert_close(policy(advantages, dirty, mask, is_image), (want, metrics))
    pad = torch.zeros(5, 4)  # four more text positions in front, all masked
    wide = policy(
        advantages, torch.cat([pad, entropy], 1), torch.cat([pad.bool(), mask], 1), torch.cat([pad.bool(), is_image], 1)
    )
    torch.testing.assert_close(wide, (torch.cat([pad, want], 1), metrics))


@pytest.mark.parametrize("policy", [uniform, entropy_guided, top_entropy])
def test_a_row_does_not_depend_on_its_batch(policy):
    inputs = batch(8)
    whole = policy(*inputs)[0]
    for i in range(5):
        assert torch.equal(policy(*(x[i : i + 1] for x in inputs))[0], whole[i : i + 1])


@pytest.mark.parametrize("policy", SHAPERS)
def test_all_masked_and_empty_batches(policy):
    advantages, entropy, mask, is_image = batch(9)
    for inputs in (
        (advantages, entropy * torch.nan, torch.zeros_like(mask), is_image),
        (advantages[:0], entropy[:0], mask[:0], is_image[:0]),
        (advantages, entropy[:, :0], mask[:, :0], is_image[:, :0]),
    ):
        shaped, metrics = policy(*inputs)
        assert shaped.shape == inputs[1].shape
        assert not shaped.any()
        assert set(floats(metrics).values()) == {0.0}
        assert not any(key.endswith(("_text", "_image")) for key in metrics)


@pytest.mark.parametrize("policy", SHAPERS)
def test_output_is_detached_float32_and_keeps_float64(policy):
    advantages, entropy, mask, is_image = batch(10)
    shaped, metrics = policy(advantages.clone().requires_grad_(), entropy.clone().requires_grad_(), mask, is_image)
    assert not shaped.requires_grad
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
    assert shaped.dtype == torch.float32
    assert policy(advantages.double(), entropy.double(), mask, is_image)[0].dtype == torch.float64
    half = advantages.bfloat16(), entropy.bfloat16()
    low = policy(*half, mask, is_image)
    assert low[0].dtype == torch.float32
    torch.testing.assert_close(low, policy(half[0].float(), half[1].float(), mask, is_image), atol=0, rtol=0)


def test_padding_that_a_micro_step_does_not_have_is_not_ranked():
    """A plan of two tokens in a micro-step of four columns, in a batch of six: four entropies are ranked, not six."""
    entropy = torch.tensor([[0.2, 0.6, 0.5, 0.4, torch.nan, torch.nan]])
    mask = torch.tensor([[True, True, False, False, False, False]])
    is_image = torch.zeros_like(mask)
    advantages = torch.tensor([1.0])
    shaped, metrics = entropy_guided(advantages, entropy, mask, is_image, rank_padding=True)
    # h = .2 .4 .5 .6: above h[2] = .5, below h[1] = .4
    torch.testing.assert_close(shaped, torch.tensor([[0.0, 1.18, 0.0, 0.0, 0.0, 0.0]]))
    assert metrics["threshold_high_text"].item() == 0.5 and metrics["threshold_low_text"].item() == pytest.approx(0.4)
    narrow, _ = entropy_guided(advantages, entropy[:, :4], mask[:, :4], is_image[:, :4], rank_padding=True)
    assert torch.equal(narrow, shaped[:, :4])


def test_what_ranks_padding_says_so():
    assert ranks_padding(partial(entropy_guided, rank_padding=True))
    assert ranks_padding(partial(entropy_guided, rank_padding=True, segments=["text"]))
    others = (uniform, entropy_guided, partial(entropy_guided, rank_padding=False), partial(top_entropy, fraction=0.1))
    for other in (*others, partial(entropy_guided, rank_padding=True, segments=["image"])):
        assert not ranks_padding(other)
