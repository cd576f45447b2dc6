"""What the entropy bonus does to the gradient: `python -m experiments.bonus.gradient [batches=96] [overrides ...]`.

A token's bonus depends on the entropy before it is drawn and, but for its cap, hardly on what is drawn. So it is a
baseline, and the policy gradient of a baseline is 0 in expectation where tokens are drawn from the distribution that is
trained (the sum over actions of pi grad log pi is 0). Here that is measured: the same samples give the gradients of the
reward's advantages, of four bonuses, of what excluded tokens lose, and of entropy itself. What a batch's gradient has
in common with other batches' is signal; the rest is noise, of other prompts and of sampling. With other batches or
overrides than the recorded ones, gradient.csv beside this file is left as it is.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from egrpo.algorithm import group_advantages
from egrpo.algorithm.entropy_policies import budget_balanced, entropy_guided, uniform
from egrpo.analysis.resampling import Bootstrap
from egrpo.images import to_images
from egrpo.paths import config_dir
from egrpo.studies.compare import over_seeds
from egrpo.train import build_module
from egrpo.training.settings import own_samples
from egrpo.types import Rollout, TokenScores

HERE = Path(__file__).parent
RECORDED = 96  # batches of gradient.csv
TERMS = (
    *("advantage", "excluded", "bonus released", "bonus scale 3 cap 1", "bonus scale 3 cap 0.1", "bonus paper"),
    "entropy",
)


def token_terms(sampled: TokenScores, advantages: Tensor, log_sizes: Tensor) -> Tensor:
    """What every term multiplies a token's grad log pi by: [terms, N, T].

    "excluded" is what tokens of low entropy lose. "entropy" is -log pi - H, in nats: its expected gradient is that of
    the tokens' entropies at the states that were drawn.

    Args:
        sampled: As recorded in the rollout.
        advantages: [N].
        log_sizes: [N, T], log of the vocabulary's size, which recorded entropies are divided by.
    """
    where = (advantages, sampled.entropy, sampled.mask, sampled.is_image)
    plain = uniform(*where)[0]
    kept = entropy_guided(*where, bonus_scale=0.0)[0]
    bonuses = (
        entropy_guided(*where)[0],
        entropy_guided(*where, bonus_scale=3.0, bonus_cap=1.0)[0],
        entropy_guided(*where, bonus_scale=3.0, bonus_cap=0.1)[0],
        budget_balanced(*where)[0],
    )
    surprise = torch.where(sampled.mask, -sampled.logps - sampled.entropy * log_sizes, 0.0)
    return torch.stack([plain, kept - plain, *(shaped - kept for shaped in bonuses), surprise])


def gradients(module: Any, rollout: Rollout, terms: Tensor) -> np.ndarray:
    """[terms, parameters]: gradient of the mean over tokens of term times log pi, ascent direction."""
    trained = [p for p in module.policy.parameters() if p.requires_grad]
    total = [[torch.zeros_like(p) for p in trained] for _ in terms]
    for rows in module.micro_batches(rollout):
        logps = module.policy(rollout[rows], entropy=False).logps
        for sums, term in zip(total, terms, strict=True):
            mean = (term[rows] * logps).sum() / rollout.sampled.mask.sum()
            parts = torch.autograd.grad(mean, trained, retain_graph=True, allow_unused=True)
            for own, part in zip(sums, parts, strict=True):
                own += 0.0 if part is None else part
    return torch.stack([torch.cat([part.flatten() for part in sums]) for sums in total]).numpy()


def measure(overrides: list[str], batches: int) -> np.ndarray:
    """Gradients of the untouched model on the first training batches: [batches, terms, parameters]."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["+experiment=shapes_eg_grpo", "run_dir=null", *overrides])
    torch.set_num_threads(cfg.threads)
    data, module = instantiate(cfg.data), build_module(cfg)
    data.setup("fit")
    module.configure_model()
    config = module.policy.model.config
    sizes = [math.log(config.text_config.vocab_size), math.log(config.vq_config.num_embeddings)]
    found = []
    for step, sealed in enumerate(itertools.islice(data.train_dataloader(), batches)):
        records = sealed.records
        rollout = module.sample(records, step)
        grouped, _ = own_samples(records, module.rollout_settings)
        table = module.rewards(to_images(rollout.pixels), grouped)
        advantages = group_advantages(
            module.rewards.mix(table, module.rollout_settings.group_size), module.rollout_settings.group_size
        )
        log_sizes = torch.tensor(sizes)[rollout.sampled.is_image.long()]
        found.append(gradients(module, rollout, token_terms(rollout.sampled, advantages, log_sizes)))
        print(f"\rbatch {step + 1} of {batches}", end="", file=sys.stderr, flush=True)
    return np.stack(found)


def compare(found: np.ndarray) -> pd.DataFrame:
    """A row a term, each number with a 95 % interval over batches.

    norm: of a batch's gradient, root mean square. signal: share of the squared norm that is common to all batches, 1 =
    no noise. along advantages: slope of the advantages' objective along the term's gradient, 1 = along its own. raises
    entropy: slope of the tokens' mean entropy along it, nats a token. Products are of different batches alone, so that
    shared samples are never taken for agreement.

    Args:
        found: [batches, terms, parameters].
    """
    products = np.einsum("ikp,jlp->klij", found, found, optimize=True)
    bootstrap, rows = Bootstrap(5000, 0), []
    for at, name in enumerate(TERMS):
        row: dict[str, Any] = {"term": name}
        for key, values in pseudo_values(products, at).items():
            estimate = over_seeds(values, bootstrap).estimate
            row |= {key: estimate.value, f"{key} low": estimate.low, f"{key} high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows)


def pseudo_values(products: np.ndarray, term: int) -> dict[str, np.ndarray]:
    """Jackknife pseudo-values [batches] of the numbers of one term; their mean is the (bias-corrected) estimate.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 11. Of products of pairs the jackknife
    is on the safe side.

    Args:
        products: [terms, terms, batches, batches], scalar products of gradients.
        term: The row.
    """
    batches = products.shape[-1]
    every = np.arange(batches)
    whole = _numbers(products, term, every)
    without = [_numbers(products, term, np.delete(every, i)) for i in every]
    return {
        key: np.array([batches * value - (batches - 1) * part[key] for part in without]) for key, value in whole.items()
    }


def _numbers(products: np.ndarray, term: int, batches: np.ndarray) -> dict[str, float]:
    pairs = np.ix_(batches, batches)
    advantage, entropy = TERMS.index("advantage"), TERMS.index("entropy")

    def common(a: int, b: int) -> float:
        part = products[a, b][pairs]
        return float((part.sum() - np.trace(part)) / (len(batches) * (len(batches) - 1)))

    squared = float(np.diagonal(products[term, term])[batches].mean())
    return {
        "norm": squared**0.5,
        "signal": common(term, term) / squared,
        "along advantages": common(term, advantage) / common(advantage, advantage),
        "raises entropy": common(term, entropy),
    }


def main(arguments: list[str]) -> None:
    """Measures, prints; writes gradient.csv where it is the recorded measurement that was made again."""
    own = [a for a in arguments if a.startswith("batches=")]
    overrides = [a for a in arguments if a not in own]
    told = own[-1].removeprefix("batches=") if own else str(RECORDED)
    if not told.isdecimal() or int(told) < 3:
        sys.exit(f"error: batches={told}: give a whole number of at least 3; of fewer nothing can be compared")
    rows = compare(measure(overrides, int(told)))
    if int(told) == RECORDED and not overrides:
        rows.to_csv(HERE / "gradient.csv", index=False, float_format="%.4g")
    print(file=sys.stderr)
    keys = [key for key in rows.columns if f"{key} low" in rows.columns]
    print(f"| term | {' | '.join(keys)} |\n|{'---|' * (len(keys) + 1)}")
    for _, row in rows.iterrows():
        cells = (f"{row[key]:.3g} [{row[f'{key} low']:.3g}, {row[f'{key} high']:.3g}]" for key in keys)
        print(f"| {row.term} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
