"""What a divided model cannot do is told in one sentence."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import torchrun

RUN = (
    "-m egrpo.train +experiment=shapes_eg_grpo +debug=fast logger=none trainer.accelerator=cpu trainer.devices=2 "
    "trainer.precision=32-true strategy=deepspeed_stage_3 model/adapter=lora +model.gradient_checkpointing=true "
    "baseline_temperatures=[] trainer.limit_val_batches=0 callbacks.best=null"
)


@pytest.mark.slow
def test_an_adapter_with_checkpointing_on_divided_weights(tmp_path):
    status, output = torchrun([*RUN.split(), f"hydra.run.dir={tmp_path}"])
    assert status != 0 and "error: model.gradient_checkpointing=true does not go with an adapter" in output
    assert "CheckpointError" not in output
