"""FSDP2 reads a checkpoint part by part: the same model, and no process ever holds a whole copy."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from egrpo.paths import resolve
from egrpo.policy.deferred import deferring, fill, weight_files
from egrpo.policy.loading import load_janus
from tests.distributed.ranks import on_ranks

SHAPES = str(resolve("package:egrpo/shapes/assets/janus"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_filled_later_is_the_same(dtype: str):
    expected, _ = load_janus(SHAPES, dtype)
    with deferring():
        model, _ = load_janus(SHAPES, dtype)
    assert all(p.is_meta for p in model.parameters()) and model.training == expected.training
    fill(model, {name: name for name, _ in model.named_parameters()}, weight_files(SHAPES), torch.device("cpu"))
    found, wanted = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, expected))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]), name


def test_a_checkpoint_without_safetensors_is_told(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="no weights in safetensors files"):
        weight_files(str(tmp_path))


def wide(folder: Path) -> int:
    """Saves a model of some 600 MB; returns its bytes."""
    model, processor = load_janus(SHAPES)
    config = model.config
    config.text_config.hidden_size, config.text_config.intermediate_size = 1024, 4096
    config.text_config.num_hidden_layers, config.text_config.num_attention_heads = 8, 8
    config.text_config.num_key_value_heads, config.text_config.head_dim = 8, 128
    config.vision_config.projection_dim = config.vq_config.projection_dim = 1024
    model = type(model)(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def high_water() -> int:
    """Most memory this process ever held, bytes."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def built(prompts: Path, folder: Path, *overrides: str) -> tuple[int, int]:
    """High water before and after policy and reference are built."""
    from hydra.utils import instantiate

    from egrpo.train import build_module
    from tests.training.conftest import Runs

    cfg = Runs(prompts).config(folder, *overrides)
    module, data = build_module(cfg), instantiate(cfg.data)
    trainer: Any = instantiate(cfg.trainer, logger=False, callbacks=[], enable_checkpointing=False)
    levels: list[int] = []
    configure = module.configure_model

    def measured() -> None:
        levels.append(high_water())
        configure()
        levels.append(high_water())
        raise KeyboardInterrupt

    module.configure_model = measured  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.validate(module, datamodule=data, verbose=False)
    return levels[0], levels[1]


@pytest.mark.slow
def test_no_rank_holds_a_whole_copy(prompts, tmp_path):
    """Policy and reference, both divided by two, are one copy; a whole one of each would be two."""
    size = wide(tmp_path / "model")
    words = ("strategy=fsdp2", "trainer.devices=2", "trainer.precision=32-true", f"model.path={tmp_path / 'model'}")
    for before, after in on_ranks(built, tmp_path / "call", prompts, tmp_path / "run", *words):
        assert after - before < 1.25 * size, (before, after, size)
