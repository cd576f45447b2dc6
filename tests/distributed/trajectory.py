"""Five steps of training on the shapes model, as every strategy must take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from egrpo import distributed
from egrpo.train import build_module
from tests.training.conftest import Runs

METRICS = ("train/loss", "train/kl", "train/grad_norm", "train/reward", "train/bonus_mass", "train/entropy_text")
SETTINGS = (
    "trainer.max_steps=5",
    "trainer.num_nodes=1",
    "model.max_plan_tokens=24",  # plans end at different lengths
    "model.chunk_size=16",  # so heads run another number of times for each
    "rollout.group_size=4",
    "data.prompts_per_step=2",
    "optimizer.lr=1e-4",
    "objective.beta=0.05",
)


def trajectory(prompts: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """Metrics of each step as written, and the trained weights at the end, by name."""
    from lightning.pytorch import Trainer, seed_everything

    from egrpo.training.metrics_file import MetricsFile
    from tests.training.pieces import metrics

    cfg = Runs(prompts).config(folder, "trainer.limit_val_batches=0", *SETTINGS, *overrides)
    seed_everything(0, verbose=False)
    module = build_module(cfg)
    trainer: Trainer = instantiate(
        cfg.trainer, logger=[MetricsFile(str(folder))], callbacks=[], enable_checkpointing=False, _convert_="object"
    )
    drawn: list[int] = []  # counted plan tokens of each step
    sample = module.sample

    def counted(*arguments: Any) -> Any:
        rollout = sample(*arguments)
        drawn.append(int(rollout.text.mask.sum()))
        return rollout

    module.sample = counted  # type: ignore[method-assign]
    trainer.fit(module, datamodule=instantiate(cfg.data))
    weights = full_weights(module)
    rows = metrics(folder) if distributed.rank() == 0 else []
    return {
        "rows": [{name: float(row[name]) for name in METRICS} for row in rows],
        "weights": weights,
        "plan_tokens": drawn,
    }


def full_weights(module: Any) -> dict[str, torch.Tensor]:
    """The trained weights, whole on this rank."""
    found = {}
    for name, p in module.policy.named_parameters():
        if p.requires_grad:
            with module.engine.gathered([p]) as (value,):
                found[name] = value.detach().cpu().clone()
    return found


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Greatest relative difference of each metric over steps, and absolute of the weights."""
    assert len(one["rows"]) == len(other["rows"]) == 5
    out = {
        name: max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-3) for a, b in zip(one["rows"], other["rows"]))
        for name in METRICS
    }
    assert one["weights"].keys() == other["weights"].keys() and one["weights"]
    out["weights"] = max(float((v - other["weights"][k]).abs().max()) for k, v in one["weights"].items())
    return out
