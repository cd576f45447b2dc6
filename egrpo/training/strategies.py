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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import strategies
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from egrpo import distributed, sharded
from egrpo.atomic import beside, discard, put_in_place, sync
from egrpo.base.errors import ConsequenceError, UserError
from egrpo.base.files import writing
from egrpo.checkpoints import (
    check_fit,
    is_divided,
    read_file,
    saved_position,
    saved_ranks,
    saved_weights,
    with_new_optimizer,
)
from egrpo.tensor_files import check_finite, read_tensors, readable
from egrpo.tensor_files import weights_only as data_alone
from egrpo.training.saving import IN_BACKGROUND, local, queue, save_file, save_parts

log = logging.getLogger(__name__)


def tell_new_optimizer(checkpoint: Any) -> None:
    if distributed.rank() == 0:
        log.warning(
            "the optimizer starts anew: %s was written by another number of ranks or strategy, or without it",
            checkpoint,
        )


class Files(TorchCheckpointIO):
    """Checkpoints of strategies that divide no weights: single files. Folders of divided ones are read as well.

    Args:
        background_from: Size in bytes from which on files are written while training continues.
    """

    def __init__(self, background_from: float = IN_BACKGROUND) -> None:
        super().__init__()
        self.background_from = background_from

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As Lightning's; a folder may have the name until now."""
        with writing(path):
            save_file(checkpoint, Path(path), self.background_from)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's, of data alone; of a folder its weights and position, and no state of an optimizer."""
        found = with_new_optimizer(Path(path)) if Path(path).is_dir() else read_tensors(Path(path))
        if not found.get("optimizer_states"):
            tell_new_optimizer(path)
        return found

    def remove_checkpoint(self, path: Any) -> None:
        """When what was saved later is written."""
        queue.run(partial(discard, Path(path)))

    def teardown(self) -> None:
        wait_for_writes()


def wait_for_writes() -> None:
    """Waits for checkpoints that are still being written; raises what went wrong, unless another error ends the run."""
    queue.wait(failing=sys.exc_info()[1] is None)


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
            sync(beside(path))
            put_in_place(path)


class Queued:
    """For strategies that write without Lightning's CheckpointIO: what `Files` does about removal and the end."""

    def remove_checkpoint(self: Any, filepath: Any) -> None:
        """When what was saved later is written."""
        if self.is_global_zero:
            queue.run(partial(discard, Path(filepath)))

    def teardown(self: Any) -> None:
        wait_for_writes()
        super().teardown()  # type: ignore[misc]


class FSDP2(Queued, strategies.ModelParallelStrategy):
    """Fully sharded data parallel over all devices of all nodes (torch's `fully_shard`).

    Every rank writes its own part of a checkpoint, and reads the part that it needs of one of any number of ranks.

    Args:
        background_from: Size in bytes of a rank's part from which on it is written while training continues.
        settings: As Lightning's.
    """

    def __init__(self, background_from: float = IN_BACKGROUND, **settings: Any) -> None:
        super().__init__(**{**settings, "save_distributed_checkpoint": False})  # Lightning's format is a pickle
        self.background_from = background_from
        self._group: Any = None

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, of which this rank has its part."""
        return {name: parameter.detach() for name, parameter in self._trained().items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Settings and states, of which this rank has its part; see `egrpo.sharded`."""
        optimizer, names = getattr(optimizer, "_optimizer", optimizer), self._names()
        number = next(i for i, own in enumerate(self.optimizers) if getattr(own, "_optimizer", own) is optimizer)
        return {
            "tensors": sharded.optimizer_tensors(optimizer, number, names),
            "position": sharded.optimizer_position(optimizer, names),
        }

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Each rank its own part of a folder; without `optimizer_states` the weights and the position alone."""
        path = Path(self.broadcast(filepath))
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=distributed.PATIENCE)
        position = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        parts = {sharded.WEIGHTS: checkpoint["state_dict"]}
        if states := checkpoint.get("optimizer_states"):
            parts[sharded.OPTIMIZER] = {name: t for state in states for name, t in state["tensors"].items()}
            position[sharded.OPTIMIZERS] = [state["position"] for state in states]
        save_parts(parts, position, path, self._group, self.background_from)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All of a checkpoint of FSDP2 or a single file; of a folder that DeepSpeed wrote weights and position, for
        its optimizer starts anew."""
        path = Path(self.broadcast(checkpoint_path))
        if sharded.is_sharded(path):
            return self._load_parts(path)
        assert self.model is not None and self.lightning_module is not None
        if not is_divided(path):
            return self._load_file(path)
        tell_new_optimizer(path)
        self._set_weights(saved_weights(path) if self.global_rank == 0 else {})
        return saved_position(path) | {"optimizer_states": []}

    def _load_parts(self, path: Path) -> dict[str, Any]:
        assert self.lightning_module is not None
        check_fit(sharded.weight_shapes(path), self.lightning_module)
        trained = self._trained()
        sharded.load_weights(path, trained)
        check_finite(((name, local(p)) for name, p in trained.items()), str(path))
        if not sharded.has_optimizer(path):
            tell_new_optimizer(path)
        else:
            for number, optimizer in enumerate(self.optimizers):
                sharded.load_optimizer(path, optimizer, number, self._names())
        return sharded.read_position(path) | {"optimizer_states": []}

    def _load_file(self, path: Path) -> dict[str, Any]:
        found = read_file(path)
        check_fit(found["state_dict"], self.lightning_module)  # type: ignore[arg-type]
        check_finite(found["state_dict"].items(), str(path))
        if found.get("optimizer_states"):
            with data_alone():
                return super().load_checkpoint(path)
        tell_new_optimizer(path)
        self._set_weights(found.pop("state_dict") if self.global_rank == 0 else {})
        return found

    def _set_weights(self, weights: dict[str, Any]) -> None:
        """Divides whole weights of rank 0 among the ranks."""
        assert self.model is not None and self.lightning_module is not None
        if weights:
            check_fit(weights, self.lightning_module)
            check_finite(weights.items(), "the checkpoint")
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def _trained(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return {name: p for name, p in self.lightning_module.named_parameters() if p.requires_grad}

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self._trained().items()}


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


class DeepSpeed(Queued, WrittenBeside, strategies.DeepSpeedStrategy):
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

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """A folder with a part of every rank; without `optimizer_states` one file with the weights and the position."""
        if checkpoint.get("optimizer_states"):
            queue.wait()
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        weights = self._whole_weights()
        if self.is_global_zero:
            save_file({**checkpoint, "state_dict": weights}, Path(filepath), IN_BACKGROUND)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All of a checkpoint of as many ranks; of another one its position, for its weights are there already and its
        optimizer begins anew."""
        if self._fits(Path(checkpoint_path)):
            with data_alone(), readable(checkpoint_path):
                return super().load_checkpoint(checkpoint_path, weights_only)
        tell_new_optimizer(checkpoint_path)
        return saved_position(Path(checkpoint_path))

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, gathered one by one, on the host of rank 0; nothing on the other ranks."""
        import deepspeed

        assert self.lightning_module is not None
        found = {}
        for name, parameter in self.lightning_module.named_parameters():
            if parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage_3):
                    if self.is_global_zero:
                        found[name] = parameter.detach().to("cpu", copy=True)
        return found

    def _fits(self, path: Path) -> bool:
        return is_divided(path) and saved_ranks(path) == self.world_size

    def _weights(self, path: Path) -> dict[str, torch.Tensor]:
        weights = saved_weights(path) if self.global_rank == 0 or not self.zero_stage_3 else {}
        if weights:
            assert self.lightning_module is not None
            check_fit(weights, self.lightning_module)
            check_finite(weights.items(), str(path))
        return weights
