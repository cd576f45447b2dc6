"""Files that are damaged, hold code, or belong to another model: one sentence from every reader, and nothing is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from egrpo import policies
from egrpo.base.errors import UserError
from egrpo.benchmarks.states import states
from egrpo.checkpoints import check_checkpoint, trained_names
from egrpo.entry import is_expected
from egrpo.export import export
from egrpo.policies import load_policy
from egrpo.policy import JanusPolicy
from egrpo.policy.loading import load_janus
from egrpo.studies.searching import storage_of
from egrpo.tensor_files import LFS, CheckpointError
from egrpo.training.resume import changed_settings
from egrpo.training.strategies import Files
from tests.test_policies import SHAPES

HEAD = "policy.model.lm_head.weight"
POINTER = LFS + b"v1\noid sha256:0123\nsize 76000000000\n"
Run = tuple[Path, dict[str, Any], JanusPolicy]


@pytest.fixture(scope="module")
def whole() -> JanusPolicy:
    return load_policy(SHAPES)


@pytest.fixture
def run(whole: JanusPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The folder of a run with one checkpoint, what that holds, and the policy, which is built once for all tests."""
    monkeypatch.setattr(policies, "built", lambda model: whole)
    trained = {f"policy.{name}" for name in trained_names(whole)}
    weights = {f"policy.{name}": p.detach().clone() for name, p in whole.named_parameters()}
    state = {"global_step": 1, "state_dict": {name: weights[name] for name in sorted(trained)}}
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save({"model": SHAPES, "rollout": {}}, folder / "config.yaml")
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    return folder, state, whole


class Bomb:
    """Code in a pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def cut(path: Path, state: dict[str, Any]) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def content(data: bytes) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, state: path.write_bytes(data) and None


def code(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, "callbacks": Bomb(path.parent / "was run")}, path)


def other(path: Path, state: dict[str, Any]) -> None:
    torch.save({"epoch": 3}, path)


def with_head(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, dict[str, Any]], None]:
    def fault(path: Path, state: dict[str, Any]) -> None:
        weights = {**state["state_dict"], HEAD: change(state["state_dict"][HEAD].clone())}
        torch.save({**state, "state_dict": weights}, path)

    return fault


def another(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, "state_dict": {f"{name}_b": value for name, value in state["state_dict"].items()}}, path)


FAULTS: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], str]] = {
    "cut": (cut, r"last\.ckpt.*cut short"),
    "empty": (content(b""), r"last\.ckpt is empty"),
    "text": (content(b"<html>404</html>"), r"last\.ckpt.*not a checkpoint"),
    "git LFS": (content(POINTER), r"last\.ckpt is a git LFS pointer.*git lfs pull"),
    "code": (code, r"last\.ckpt holds other things than tensors"),
    "no run's": (other, r"last\.ckpt is not the checkpoint of a training run"),
    "shape": (with_head(lambda w: w[:-3]), r"lm_head\.weight has the shape \(435, 128\) there and \(438, 128\)"),
    "names": (another, r"does not fit this model: \d+ weights are missing"),
    "NaN": (with_head(lambda w: w.index_fill_(0, torch.tensor(7), float("nan"))), r"lm_head\.weight holds NaN or inf"),
    "infinity": (with_head(lambda w: w.index_fill_(1, torch.tensor(0), -float("inf"))), r"lm_head\.weight holds NaN"),
}


def resume(path: Path, policy: JanusPolicy) -> None:
    """What `egrpo.train ckpt_path=` does: look at it, read it, give it to the module."""
    from egrpo.training import GRPOModule

    check_checkpoint(str(path))
    module = GRPOModule.__new__(GRPOModule)
    torch.nn.Module.__init__(module)
    module.policy = policy
    GRPOModule.on_load_checkpoint(module, Files().load_checkpoint(path))


READERS: dict[str, Callable[[Path, Path, JanusPolicy], Any]] = {
    "generate, of a checkpoint": lambda folder, path, policy: load_policy(SHAPES, path),
    "generate, of a folder": lambda folder, path, policy: load_policy(SHAPES, folder),
    "export": lambda folder, path, policy: export(
        OmegaConf.create({"run": str(folder), "checkpoint": "last", "target": str(folder / "export")})
    ),
    "evaluate, all": lambda folder, path, policy: [
        state.load()
        for state in states(folder / "all", OmegaConf.create(SHAPES), str(folder), "all", "x", None, [])
        if state.step
    ],
    "resume": lambda folder, path, policy: resume(path, policy),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_cannot_be_used(run: Run, fault: str, reader: str):
    folder, state, policy = run
    path = folder / "checkpoints" / "last.ckpt"
    FAULTS[fault][0](path, state)
    before = policy.model.lm_head.weight.clone()
    with pytest.raises(CheckpointError, match=FAULTS[fault][1]) as caught:
        READERS[reader](folder, path, policy)
    said = str(caught.value)
    assert is_expected(caught.value) and "\n" not in said and len(said) < 500
    assert not (path.parent / "was run").exists() and not (folder / "export").exists()
    assert torch.equal(policy.model.lm_head.weight, before)


def test_a_checkpoint_that_can_be_used(run: Run):
    folder, _, policy = run
    for name, reader in READERS.items():
        if name not in ("export", "resume"):
            reader(folder, folder / "checkpoints" / "last.ckpt", policy)


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe\x00", b"a: [1, 2", b"- 1\n- 2\n", b"<html>", POINTER, b"model: x\n"]
)
@pytest.mark.parametrize("reader", ["generate, of a folder", "export", "evaluate, all"])
def test_a_config_that_cannot_be_used(run: Run, damage: bytes, reader: str):
    folder, _, policy = run
    (folder / "config.yaml").write_bytes(damage)
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        READERS[reader](folder, folder / "checkpoints" / "last.ckpt", policy)
    assert "\n" not in str(caught.value)
    if damage not in (b"", b"model: x\n"):
        cfg = OmegaConf.create({"ckpt_path": "x", "run_dir": str(folder)})
        with pytest.raises(ValueError, match=r"config\.yaml cannot be read as settings"):
            changed_settings(cfg, folder)


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "egrpo.rewards.PythonReward", "egrpo.policyx.run"])
def test_a_config_calls_no_code_but_ours(run: Run, monkeypatch: pytest.MonkeyPatch, target: str):
    folder = run[0]
    OmegaConf.save({"model": {**SHAPES, "parts": [{"_target_": target}]}}, folder / "config.yaml")
    with pytest.raises(ValueError, match=f"made by {target}, which is none of egrpo's policies and would be run"):
        load_policy(SHAPES, folder)
    monkeypatch.setenv("EGRPO_TRUST", f"other, {target.partition('.')[0]}")
    load_policy(SHAPES, folder)


MODELS: dict[str, tuple[str, bytes | None, str]] = {
    "cut": ("model.safetensors", None, "cannot be read as a checkpoint of tensors"),
    "empty": ("model.safetensors", b"", r"model\.safetensors is empty"),
    "text": ("model.safetensors", b"<html>404</html>", "cannot be read as a checkpoint of tensors"),
    "git LFS": ("model.safetensors", POINTER, r"model\.safetensors is a git LFS pointer"),
    "config cut": ("config.json", None, r"config\.json is damaged"),
    "config empty": ("config.json", b"", r"config\.json is empty"),
    "config a list": ("config.json", b"[1]", r"config\.json is damaged"),
    "config git LFS": ("config.json", POINTER, r"config\.json is a git LFS pointer"),
}


@pytest.mark.parametrize("fault", MODELS)
def test_a_model_that_cannot_be_used(tmp_path: Path, fault: str):
    from egrpo.paths import resolve

    shipped = Path(str(resolve("package:egrpo/shapes/assets/janus")))
    for source in shipped.iterdir():
        (tmp_path / source.name).symlink_to(source)
    name, data, said = MODELS[fault]
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes((shipped / name).read_bytes()[:-1000] if data is None else data)
    with pytest.raises(ValueError, match=said) as caught:
        load_janus(tmp_path)
    assert "\n" not in str(caught.value) and is_expected(caught.value)


def test_a_model_with_nan_is_neither_loaded_nor_exported(whole: JanusPolicy, tmp_path: Path):
    weight = whole.model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3, 5] = float("nan")
    with pytest.raises(ValueError, match=r"the model to export: the tensor lm_head\.weight holds NaN"):
        whole.export(tmp_path / "export")
    assert not (tmp_path / "export").exists()
    whole.model.save_pretrained(tmp_path / "model")
    whole.processor.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        weight.copy_(kept)
    with pytest.raises(ValueError, match=r"model: the tensor lm_head\.weight holds NaN or infinity"):
        load_janus(tmp_path / "model")
    from egrpo.conversion.janus_original import convert

    with pytest.raises(ValueError, match=r"lm_head\.weight holds NaN or infinity"):
        convert(tmp_path / "model", tmp_path / "original")
    assert not (tmp_path / "original").exists()


@pytest.mark.parametrize("data", [b"no database\n", POINTER])
@pytest.mark.parametrize("choice, name", [("sqlite", "search.db"), ("journal", "search.journal")])
def test_trials_of_a_search_that_cannot_be_read(tmp_path: Path, choice: str, name: str, data: bytes):
    (tmp_path / name).write_bytes(data * 100)
    with pytest.raises(UserError, match=rf"{name}: the search's trials cannot be read") as caught:
        storage_of(choice, tmp_path)
    assert "\n" not in str(caught.value)
