"""What W&B refuses is cut, or refused before a run starts."""

from __future__ import annotations

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from egrpo.base.errors import UserError
from egrpo.base.trackers import shortened
from tests.conf.helpers import composed

LONG = "s" * 100 + "_" + "t" * 60 + "/seed_7"  # 168 characters


@pytest.mark.parametrize(
    "text, longest, cut",
    [(None, 5, None), ("abcde", 5, "abcde"), ("abcdefghij", 7, "ab...ij"), ("abcdefghij", 8, "ab...hij")],
)
def test_a_long_text_keeps_its_start_and_its_end(text, longest, cut):
    assert shortened(text, longest) == cut


def test_names_and_tags_are_as_long_as_wandb_takes_them(tmp_path):
    cfg = composed("train", f"study.run='{LONG}'", f"study.setting='{LONG}'", f"study.tags=['{LONG}',a,'',a]")
    cfg.run_dir = str(tmp_path)
    logger = instantiate(cfg.logger.wandb)
    kept = logger._wandb_init
    assert len(kept["name"]) == 128 and kept["name"].startswith("s" * 62 + "...") and kept["name"].endswith("/seed_7")
    assert len(kept["job_type"]) == 128
    assert kept["tags"] == [LONG[:30] + "..." + LONG[-31:], "a"] and len(kept["tags"][0]) == 64
    import wandb

    wandb.Settings(run_tags=kept["tags"])  # which refuses tags of 65 characters, and empty ones
    assert kept["project"] == "egrpo" and logger._offline


def test_online_without_a_key_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = composed("train", "logger.wandb.offline=false")
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.logger.wandb)
    said = "logger.wandb.offline=false needs a W&B key: run `wandb login`, or set WANDB_API_KEY, then again"
    assert isinstance(caught.value.__cause__, UserError) and str(caught.value.__cause__) == said
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert instantiate(cfg.logger.wandb)._wandb_init["project"] == "egrpo"
