"""What training changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from transformers import JanusForConditionalGeneration

from egrpo.training import GRPOModule
from tests.training.pieces import make_lively, metrics, trained_weights

LORA = "model/adapter=lora"


class Recorder(Callback):
    """Keeps a metric of every step."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.values.append(trainer.callback_metrics[self.name].item())


def paint_upper_codes_white(codes: torch.Tensor) -> torch.Tensor:
    """In place of the VQ decoder: pixels that tell, by brightness, the share of codes in the codebook's upper half."""
    return torch.where(codes >= 322, 255, 0).to(torch.uint8).view(-1, 6, 6, 1).expand(-1, -1, -1, 3)


@pytest.mark.parametrize("cot", ["on", "off"])
def test_a_reward_that_can_be_learned_rises(runs, tmp_path, cot: str):
    reward = Recorder("train/reward")
    settings = ("rollout.group_size=8", "objective.beta=0", "trainer.max_steps=15", "optimizer.lr=1e-3", f"cot={cot}")
    module = runs.module(tmp_path, *settings)
    module.policy.decode = paint_upper_codes_white
    make_lively(module.policy)
    runs.fit(tmp_path, *settings, module=module, callbacks=[reward])
    first, last = np.array(reward.values[:3]), np.array(reward.values[-3:])
    assert last.min() > first.max() + 0.1
    assert last.mean() > first.mean() + 0.2


@pytest.mark.parametrize("adapter", ["model/adapter=none", LORA])
def test_only_what_is_trained_changes(runs, tmp_path, adapter: str):
    kl = Recorder("train/kl")
    module = runs.module(tmp_path, adapter)
    before = {name: value.clone() for name, value in module.policy.state_dict().items()}
    runs.fit(tmp_path, adapter, "trainer.max_steps=3", module=module, callbacks=[kl])
    after = module.policy.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    if adapter == LORA:
        assert changed and all("lora_" in name for name in changed)
        assert {name for name in after if "lora_" in name} == changed
    else:
        # Tokens that no plan holds have no gradient, but their rows share a weight with those that do.
        expected = {name for name in after if name.startswith(("model.model.language_model.", "model.lm_head."))}
        assert changed == {name for name in expected if "inv_freq" not in name}
    assert kl.values[0] == pytest.approx(0, abs=1e-7) and kl.values[2] > 1e-5
    # The reference is still the untouched model: what it gives differs from the policy's scores by now.
    _, rollout, _ = module.last_rollout
    fresh = runs.module(tmp_path, adapter)
    expected_logps = fresh.policy.score(rollout).logps
    torch.testing.assert_close(module.reference.score(rollout).logps, expected_logps, atol=1e-5, rtol=0)
    assert (module.policy.score(rollout).logps - expected_logps).abs().max() > 1e-4


@pytest.fixture(scope="module")
def finished(runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two steps by adapter."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("none", "lora")}
    for name, folder in folders.items():
        runs.run(folder, f"model/adapter={name}")
    return folders


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_checkpoints_hold_trained_weights_alone(runs, finished, tmp_path, adapter: str):
    checkpoint = torch.load(finished[adapter] / "checkpoints" / "last.ckpt", weights_only=False)
    module = runs.module(tmp_path, f"model/adapter={adapter}")
    assert set(checkpoint["state_dict"]) == {f"policy.{name}" for name in trained_weights(module)}
    size = sum(value.numel() for value in checkpoint["state_dict"].values())
    trainable = sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    file = (finished[adapter] / "checkpoints" / "last.ckpt").stat().st_size
    assert size == trainable and file < 3.2 * 4 * trainable + 2**18  # the weights and AdamW's two moments
    assert all(float(row["train/loss"]) < 100 for row in metrics(finished[adapter]) if "train/loss" in row)


@pytest.mark.parametrize("adapter, other", [("none", "lora"), ("lora", "none")])
def test_a_checkpoint_of_another_adapter_is_refused(runs, finished, tmp_path, adapter: str, other: str):
    path = finished[adapter] / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"does not fit this model.*use the model and adapter it was trained with"):
        runs.run(tmp_path, f"model/adapter={other}", f"ckpt_path={path}")


@pytest.mark.parametrize("adapter", ["model/adapter=none", LORA])
def test_an_export_is_the_trained_model(runs, tmp_path, adapter: str):
    module: GRPOModule = runs.fit(tmp_path, adapter, "optimizer.lr=1e-2")
    policy = module.policy.eval()
    policy.export(tmp_path / "export")
    plain = JanusForConditionalGeneration.from_pretrained(tmp_path / "export")
    untouched = runs.module(tmp_path, adapter).policy.eval()
    ids = torch.tensor([policy.reasoning_ids("a red circle")])
    hidden = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs, old = (model(input_ids=ids).logits for model in (policy.model, plain, untouched.model))
        assert torch.equal(policy.model.model.generation_head(hidden), plain.model.generation_head(hidden))
    if adapter == LORA:
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)  # merging rounds
    else:
        assert torch.equal(theirs, ours)
    assert (ours - old).abs().max() > 1e-2
