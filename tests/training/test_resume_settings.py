"""A run that resumes in its own folder says what differs from the run that began there."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from egrpo.checkpoints import check_checkpoint
from egrpo.training.resume import changed_settings


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


def test_a_missing_or_cut_checkpoint_is_told(tmp_path):
    check_checkpoint(None)
    with pytest.raises(ValueError, match="there is no such checkpoint"):
        check_checkpoint(str(tmp_path / "none.ckpt"))
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="cut short"):
        check_checkpoint(str(tmp_path / "cut.ckpt"))
