"""Lightning's strategies with what this project adds; chosen by conf/strategy.

They run on a CPU too, over gloo, so that tests run what production runs.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import strategies
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies.deepspeed import remove_module_hooks

from egrpo.training.checkpoints import check_names, saved_position, saved_ranks, saved_weights, trained_names

log = logging.getLogger(__name__)


class FSDP2(strategies.ModelParallelStrategy):
    """Fully sharded data parallel over all devices of all nodes (torch's `fully_shard`).

    Args:
        settings: As Lightning's.
    """

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


class DeepSpeed(strategies.DeepSpeedStrategy):
    """DeepSpeed ZeRO.

    Args:
        settings: As Lightning's; what `config` would replace as a whole is better set through `zero`.
        zero: More keys of DeepSpeed's `zero_optimization`.
    """

    def __init__(self, zero: dict[str, Any] | None = None, **settings: Any) -> None:
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        super().__init__(exclude_frozen_parameters=True, **settings)
        assert isinstance(self.config, dict)
        self.config.setdefault("zero_optimization", {}).update(zero or {})
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)  # of DeepSpeed's log only; our loader has none
        self.config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW steps on the CPU as well

    @property
    def on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self.on_cpu else super().root_device  # DeepSpeed reads the index

    def setup_environment(self) -> None:
        if self.on_cpu:
            strategies.DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if not self.on_cpu:
            return super().setup_distributed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        super()._format_config()
        assert isinstance(self.config, dict)
        if "bf16" in self.config:  # otherwise stage 2 applies gradients that are not finite
            self.config["bf16"]["check_grad_overflow"] = True

    def _initialize_deepspeed_train(self, model: Any) -> None:
        remove_module_hooks(model)  # of a validation before training, which would gather and release once more
        path = model.resume_from
        if path is not None and not self._fits(Path(path)):
            # Before DeepSpeed copies the weights for its optimizer, or it would go on from the others.
            self._restore_zero_state({"state_dict": self._weights(Path(path))}, strict=False)
        super()._initialize_deepspeed_train(model)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All of a checkpoint of as many ranks; of another one its position, for its weights are there already and its
        optimizer begins anew."""
        if self._fits(Path(checkpoint_path)):
            return super().load_checkpoint(checkpoint_path, weights_only)
        log.warning("%s was written by another number of ranks or strategy: the optimizer begins anew", checkpoint_path)
        return saved_position(Path(checkpoint_path))

    def _fits(self, path: Path) -> bool:
        return path.is_dir() and saved_ranks(path) == self.world_size

    def _weights(self, path: Path) -> dict[str, torch.Tensor]:
        weights = saved_weights(path) if self.global_rank == 0 or not self.zero_stage_3 else {}
        if weights:
            assert self.lightning_module is not None
            check_names(weights, trained_names(self.lightning_module))
        return weights
