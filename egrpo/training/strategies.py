"""Lightning's strategies with what this project adds; chosen by conf/strategy.

They run on a CPU too, over gloo, so that tests run what production runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import strategies
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from egrpo import distributed
from egrpo.base.errors import ConsequenceError, UserError
from egrpo.base.files import writing
from egrpo.checkpoints import (
    beside,
    check_names,
    discard,
    is_divided,
    put_in_place,
    saved_position,
    saved_ranks,
    saved_weights,
    trained_names,
    with_new_optimizer,
)

log = logging.getLogger(__name__)


def tell_new_optimizer(checkpoint: Any) -> None:
    if distributed.rank() == 0:
        log.warning("%s was written by another number of ranks or strategy: the optimizer begins anew", checkpoint)


class Files(TorchCheckpointIO):
    """Checkpoints of strategies that divide no weights: single files. Folders that DeepSpeed wrote are read as well."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As Lightning's; a folder may have the name until now."""
        with writing(path):
            super().save_checkpoint(checkpoint, beside(Path(path)), storage_options)
            put_in_place(Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's; of a folder its weights and position, and no state of an optimizer."""
        if not is_divided(Path(path)):
            return super().load_checkpoint(path, map_location, weights_only)
        tell_new_optimizer(path)
        return with_new_optimizer(Path(path))


class WrittenBeside:
    """For strategies by which all ranks write: a checkpoint takes its name when it is whole.

    So a run that is killed while it writes keeps the checkpoint of that name, and no parts of ranks that are no more
    stay in it.
    """

    def save_checkpoint(self: Any, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self.is_global_zero:
            discard(beside(path))
        self.barrier()
        with writing(path):
            super().save_checkpoint(checkpoint, beside(path), storage_options)  # type: ignore[misc]
        self.barrier()
        if self.is_global_zero:
            put_in_place(path)


class FSDP2(WrittenBeside, strategies.ModelParallelStrategy):
    """Fully sharded data parallel over all devices of all nodes (torch's `fully_shard`).

    Args:
        settings: As Lightning's.
    """

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights on rank 0, gathered one by one and moved to the host; nothing on the other ranks."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's, after a look at the names; of a folder that DeepSpeed wrote weights and position, for its
        optimizer begins anew."""
        assert self.model is not None and self.lightning_module is not None
        path = Path(self.broadcast(checkpoint_path))
        trained = trained_names(self.lightning_module)
        if not is_divided(path):
            if path.is_file():
                check_names(torch.load(path, mmap=True, map_location="cpu", weights_only=False)["state_dict"], trained)
            return super().load_checkpoint(path, weights_only)
        tell_new_optimizer(path)
        weights: dict[str, Any] = {}
        if self.global_rank == 0:
            weights |= saved_weights(path)
            check_names(weights, trained)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)
        return saved_position(path) | {"optimizer_states": []}


@contextmanager
def compiling() -> Iterator[None]:
    """Where DeepSpeed may compile parts of itself: on a CPU at first use, elsewhere for some optimizers.

    Raises:
        UserError: it could not; the compiler's own words are in the error's cause.
    """
    try:
        yield
    except (RuntimeError, ImportError) as error:
        if not any(words in str(error) for words in ("building extension", "ninja not being", "shared object file")):
            raise
        name = os.environ.get("CXX", "c++")
        fault = "failed" if shutil.which(name) else "is not there"
        # The ranks that wait for another one to compile find no shared object when it could not.
        kind = ConsequenceError if "shared object file" in str(error) else UserError
        raise kind(
            f"DeepSpeed compiles parts of itself at first use, and the C++ compiler {name} {fault}: install one, "
            "such as g++, or name it by CXX=...; strategy=fsdp2 or ddp needs none (error.txt has what was tried)"
        ) from error


class DeepSpeed(WrittenBeside, strategies.DeepSpeedStrategy):
    """DeepSpeed ZeRO.

    Args:
        settings: As Lightning's; what `config` would replace as a whole is better set through `zero`.
        zero: More keys of DeepSpeed's `zero_optimization`.
    """

    def __init__(self, zero: dict[str, Any] | None = None, **settings: Any) -> None:
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        # Its compiling looks for ninja, which lies beside a Python that may have been called by its path alone.
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
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
        with compiling():
            self._init_deepspeed_distributed()

    def setup(self, trainer: Any) -> None:
        """As Lightning's, with everything that ZeRO does not divide on this rank's device.

        DeepSpeed gathers a parameter to the device of the empty placeholder that is left of it. transformers makes
        placeholders and buffers on the CPU, Lightning moves them back there when a validation ends, and DeepSpeed moves
        nothing of a model that is divided already.
        """
        assert self.lightning_module is not None
        if self.zero_stage_3:
            self.lightning_module.to(self.root_device)
        super().setup(trainer)

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
        with compiling():
            super()._initialize_deepspeed_train(model)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All of a checkpoint of as many ranks; of another one its position, for its weights are there already and its
        optimizer begins anew."""
        if self._fits(Path(checkpoint_path)):
            return super().load_checkpoint(checkpoint_path, weights_only)
        tell_new_optimizer(checkpoint_path)
        return saved_position(Path(checkpoint_path))

    def _fits(self, path: Path) -> bool:
        return path.is_dir() and saved_ranks(path) == self.world_size

    def _weights(self, path: Path) -> dict[str, torch.Tensor]:
        weights = saved_weights(path) if self.global_rank == 0 or not self.zero_stage_3 else {}
        if weights:
            assert self.lightning_module is not None
            check_names(weights, trained_names(self.lightning_module))
        return weights
