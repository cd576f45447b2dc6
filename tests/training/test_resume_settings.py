"""A run that resumes in its own folder says what differs from the run that began there."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from egrpo.checkpoints import check_checkpoint
from egrpo.training.resume import changed_settings, flat_settings, is_finished, last_state


@pytest.fixture
def begun(tmp_path) -> DictConfig:
    cfg = OmegaConf.create({"seed": 0, "ckpt_path": None, "trainer": {"max_steps": 4, "devices": 1}, "logger": {}})
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    cfg.ckpt_path = "last.ckpt"
    return cfg


def test_the_same_settings_go_on(begun, tmp_path):
    begun.trainer.max_steps = 8
    begun.logger = {"wandb": {"offline": True}}
    assert changed_settings(begun, tmp_path) == []


def test_other_settings_are_named(begun, tmp_path):
    begun.seed = 1
    begun.trainer.devices = 2
    assert changed_settings(begun, tmp_path) == ["seed=1 (was 0)", "trainer.devices=2 (was 1)"]


def test_a_new_run_or_another_folder_may_differ(begun, tmp_path):
    begun.seed = 1
    assert changed_settings(begun, tmp_path / "elsewhere") == []
    begun.ckpt_path = None
    assert changed_settings(begun, tmp_path) == []


def test_only_a_whole_run_with_these_settings_is_finished(begun, tmp_path):
    assert not is_finished(begun, tmp_path / "elsewhere")
    assert not is_finished(begun, tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    begun.logger, begun.study = {"wandb": {}}, {"name": "mine"}
    assert is_finished(begun, tmp_path)
    begun.trainer.max_steps = 8  # a longer run is another one
    with pytest.raises(ValueError, match=r"holds a run with other settings: trainer.max_steps=8 \(was 4\); choose"):
        is_finished(begun, tmp_path)


def test_an_unfinished_run_with_other_settings_is_not_gone_on_with(begun, tmp_path):
    begun.seed = 1
    with pytest.raises(ValueError, match="seed=1"):
        is_finished(begun, tmp_path)


def test_a_moved_folder_holds_the_same_run(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        cfg = OmegaConf.create({"run_dir": str(folder), "ensemble": {"failures": "${run_dir}/failures"}})
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    (new / "config.yaml").write_text((old / "config.yaml").read_text())
    (new / "summary.json").write_text("{}")
    assert is_finished(cfg, new)


def test_a_damaged_summary_is_told(begun, tmp_path):
    (tmp_path / "summary.json").write_text('{"cut')
    with pytest.raises(ValueError, match="is damaged"):
        is_finished(begun, tmp_path)


def test_an_unfinished_run_goes_on_from_its_last_checkpoint(tmp_path):
    assert last_state(tmp_path) is None
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert last_state(tmp_path) == str(last)


def test_settings_are_flattened_by_name():
    assert flat_settings({"a": {"b": 1, "c": {}}, "d": [2]}, "/") == {"a/b": 1, "a/c": {}, "d": [2]}


def test_a_missing_or_cut_checkpoint_is_told(tmp_path):
    check_checkpoint(None)
    with pytest.raises(ValueError, match="there is no such checkpoint"):
        check_checkpoint(str(tmp_path / "none.ckpt"))
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="cut short"):
        check_checkpoint(str(tmp_path / "cut.ckpt"))
