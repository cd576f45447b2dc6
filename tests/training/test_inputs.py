"""Files that the settings name are compared by content when a run resumes, and settings with another run's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from egrpo.training import inputs
from egrpo.training.inputs import input_hashes, read_inputs, save_inputs
from egrpo.training.resume import changed_settings, is_finished, keep_inputs


@pytest.fixture
def begun(tmp_path) -> DictConfig:
    """A run in tmp_path/run that began with a prompt file, a reward function and a model, with a checkpoint."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "mine.py").write_text("def score(images, records): return [1.0] * len(images)\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"12345678")
    (tmp_path / "model" / "notes").mkdir()
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    cfg = OmegaConf.create(
        {
            **{"run_dir": str(folder), "ckpt_path": None, "seed": 0, "logger": {"csv": {"path": str(tmp_path)}}},
            "data": {"train": str(tmp_path / "prompts.jsonl"), "val": None},
            "reward": {"python": {"reward": {"function": f"{tmp_path}/mine.py:score"}}},
            "model": {"path": str(tmp_path / "model")},
        }
    )
    OmegaConf.save(cfg, folder / "config.yaml")
    keep_inputs(cfg, folder)
    cfg.ckpt_path = str(folder / "checkpoints" / "last.ckpt")
    return cfg


def sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def test_the_run_keeps_the_hashes_of_what_it_reads(begun):
    kept = read_inputs(Path(begun.run_dir))
    assert sorted(kept) == ["data.train", "model.path", "reward.python.reward.function"]
    assert kept["data.train"] == sha(b'{"prompt": "a"}\n')
    assert kept["reward.python.reward.function"] == sha((Path(begun.run_dir).parent / "mine.py").read_bytes())


def test_unedited_files_are_no_change(begun):
    assert changed_settings(begun, Path(begun.run_dir)) == []


@pytest.mark.parametrize(
    "file, content, key",
    [
        ("prompts.jsonl", b'{"prompt": "b"}\n', "data.train"),
        ("mine.py", b"def score(images, records): return [0.0] * len(images)\n", "reward.python.reward.function"),
        ("model/model.safetensors", b"12345679", "model.path"),
    ],
)
def test_an_edited_file_is_named_on_resume_and_refused_by_go_on(begun, tmp_path, file, content, key):
    before = read_inputs(tmp_path / "run")[key]
    (tmp_path / file).write_bytes(content)
    (said,) = changed_settings(begun, tmp_path / "run")
    assert said.startswith(f"the content of {key}={OmegaConf.select(begun, key)} (SHA-256 ")
    assert said.endswith(f", was {before[:12]})")
    with pytest.raises(ValueError, match=f"holds a run with other settings: the content of {key}="):
        is_finished(begun, tmp_path / "run")


def test_another_path_is_named_once(begun, tmp_path):
    (tmp_path / "other.jsonl").write_text("{}")
    begun.data.train = str(tmp_path / "other.jsonl")
    assert changed_settings(begun, tmp_path / "run") == [
        f"data.train={tmp_path}/other.jsonl (was {tmp_path}/prompts.jsonl)"
    ]


def test_a_checkpoint_of_another_folder_is_compared_with_its_own_run(begun, tmp_path):
    begun.run_dir = str(tmp_path / "second")
    assert changed_settings(begun, tmp_path / "second") == []
    begun.seed = 7
    (tmp_path / "prompts.jsonl").write_text("{}")
    seed, prompts = changed_settings(begun, tmp_path / "second")
    assert seed == "seed=7 (was 0)" and prompts.startswith("the content of data.train=")


def test_a_folder_of_an_older_version_has_no_hashes(begun, tmp_path):
    (tmp_path / "run" / "inputs.json").unlink()
    (tmp_path / "prompts.jsonl").write_text("{}")
    assert changed_settings(begun, tmp_path / "run") == []


def test_an_empty_mapping_of_an_older_run_is_null(begun, tmp_path):
    old = OmegaConf.load(tmp_path / "run" / "config.yaml")
    OmegaConf.save(OmegaConf.merge(old, {"also_validate": {}}), tmp_path / "run" / "config.yaml")
    begun.also_validate = None
    assert changed_settings(begun, tmp_path / "run") == []


def test_large_weights_are_hashed_by_size_start_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SMALL", 8)
    monkeypatch.setattr(inputs, "ENDS", 2)
    weights = tmp_path / "model.safetensors"

    def of(content: bytes) -> str:
        weights.write_bytes(content)
        return input_hashes({"model.path": str(tmp_path)})["model.path"]

    first = of(b"ab3456789z")
    assert first == sha(b"model.safetensors 10\nabc".replace(b"abc", b"ab9z"))
    assert of(b"ab3456780z") != first and of(b"ab34567899z") != first


def test_values_that_name_no_file_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean").write_text("a file that happens to be here")
    (tmp_path / "outputs").mkdir()
    settings = {"threshold": "mean", "reward_models": "outputs", "model.system": "a\nb", "model.path": "no/such"}
    assert input_hashes(settings) == {}


def test_a_function_of_a_package_is_hashed_by_its_module():
    found = input_hashes({"reward.python.reward.function": "tests.training.pieces.metrics"})
    expected = sha((Path(__file__).parent / "pieces.py").read_bytes())
    assert found == {"reward.python.reward.function": expected}


def test_hashes_are_written_and_read_back(tmp_path):
    save_inputs(tmp_path, {"data.train": "ab"})
    assert read_inputs(tmp_path) == {"data.train": "ab"} and read_inputs(tmp_path / "none") == {}
