"""A policy is what its run trained, whichever way it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from egrpo.export import export
from egrpo.policies import given_settings, load_policy, model_hash, run_of, trained_settings
from tests.training.conftest import Runs, prompts, runs

__all__ = ["prompts", "runs"]

ADAPTERS = {"none": (), "lora": ("model/adapter=lora",)}
SHAPES: dict[str, Any] = {
    "_target_": "egrpo.policy.JanusPolicy.from_pretrained",
    "_partial_": True,
    "path": "package:egrpo/shapes/assets/janus",
    "templates": {"reasoning": "Think: {prompt}"},
    "max_plan_tokens": 9,
    "decoding": "static",
}


@pytest.fixture(scope="module", params=ADAPTERS)
def trained(request: pytest.FixtureRequest, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = ("trainer.max_steps=1", "trainer.limit_val_batches=0", "callbacks.best=null")
    runs.run(folder, *ADAPTERS[request.param], *settings)
    return folder


def weights(policy: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def test_a_run_and_its_checkpoint_give_the_trained_weights(trained: Path):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=False)["state_dict"]
    policy = load_policy(SHAPES, trained)
    found = weights(policy)
    assert {f"policy.{name}" for name in found} == set(saved)
    assert all(torch.equal(value, saved[f"policy.{name}"]) for name, value in found.items())
    assert not policy.training
    again = load_policy(SHAPES, str(checkpoint))
    assert model_hash(again) == model_hash(policy) != model_hash(load_policy(SHAPES))


def test_the_model_is_the_runs_own_but_for_what_is_given(trained: Path):
    own = load_policy(SHAPES, trained)
    assert own.templates.reasoning == "Plan: {prompt}" and own.max_plan_tokens == 6
    assert own.steps.decoding == "static"  # where it runs now decides, not where it was trained
    changed = load_policy(SHAPES, trained, given=["templates"])
    assert changed.templates.reasoning == "Think: {prompt}" and changed.max_plan_tokens == 6


def test_an_export_is_the_same_model(trained: Path, tmp_path: Path):
    export(OmegaConf.create({"run": str(trained), "checkpoint": "last", "target": str(tmp_path)}))
    exported, policy = load_policy({**SHAPES, "path": str(tmp_path)}), load_policy(SHAPES, trained)
    drawn = [p.rollout(["a red circle"], 2, seed=0, step=0, cot=False, cfg_weight=1.0) for p in (exported, policy)]
    assert torch.allclose(drawn[0].image.logps, drawn[1].image.logps, atol=1e-4)
    itself = load_policy(SHAPES, tmp_path)
    assert model_hash(itself) == model_hash(exported)
    assert itself.templates.reasoning == "Plan: {prompt}" and itself.max_plan_tokens == 6
    assert trained_settings(tmp_path) == trained_settings(trained)
    (tmp_path / "egrpo.yaml").unlink()
    with pytest.raises(ValueError, match=r"a model, not a run; load it with model\.path="):
        load_policy(SHAPES, tmp_path)


def test_what_is_no_checkpoint_is_told(trained: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="there is no such checkpoint"):
        run_of(tmp_path / "nothing")
    with pytest.raises(ValueError, match="this folder is not a checkpoint"):
        run_of(tmp_path)
    alone = tmp_path / "alone" / "away" / "from" / "last.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"config\.yaml of its run is not above it"):
        run_of(alone)
    (alone.parent / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match="names no model"):
        load_policy(SHAPES, alone)
    with pytest.raises(ValueError, match="there is no such checkpoint in"):
        run_of(alone.parent)


def test_what_a_command_gives_of_the_model():
    given = ["model/templates=visualize", "model.path=x", "rollout.padding=exact", "seed=1", "model=shapes"]
    assert given_settings([*given, "+model.templates.system=a=b"]) == [
        *("templates", "path", "templates.system"),
        "padding",
    ]


def test_a_hash_sees_one_bit_of_one_weight():
    policy = load_policy(SHAPES)
    before = model_hash(policy)
    assert model_hash(load_policy(SHAPES)) == before
    with torch.no_grad():
        policy.model.lm_head.weight.view(torch.int32)[0, 0] ^= 1
    assert model_hash(policy) != before
