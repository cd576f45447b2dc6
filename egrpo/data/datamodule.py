"""Serves prompts to the trainer: an endless seeded stream for training, the file in order for validation.

The stream is the concatenation of one permutation of the file an epoch. Step s takes its positions [s P, (s+1) P) over
all ranks (P = prompts_per_step), so what a step sees follows from its number alone: nothing has to be saved, and a
resumed run goes on exactly where the checkpoint was written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from egrpo.base.errors import UserError
from egrpo.data.fetch import fetch_prompts
from egrpo.data.reader import read_prompts
from egrpo.paths import resolve
from egrpo.types import PromptRecord


class SealedBatch:
    """A batch on its way from the loader to the step, where it becomes the list again.

    Lightning's precision plugins walk through lists and dataclasses to convert tensors and refuse frozen dataclasses
    (with DeepSpeed, FSDP and half precision); they leave an object that they do not know alone.
    """

    def __init__(self, records: list[PromptRecord]) -> None:
        self.records = records


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    """The permutation of range(size) that `epoch` uses; equal arguments give equal orders on every machine."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


class PromptStream(IterableDataset):
    """The endless training stream of one rank, a batch a step.

    Args:
        records: the whole file, the same on every rank.
        prompts_per_step: P, over all ranks; rank r takes the r-th of world_size equal parts of a step's positions.
        first_step: called whenever an iteration starts, for the step that it starts with.

    Raises:
        UserError: P is not positive, or does not divide among the ranks.
    """

    def __init__(
        self,
        records: list[PromptRecord],
        prompts_per_step: int,
        seed: int = 0,
        *,
        first_step: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_prompts_per_step(prompts_per_step, world_size)
        self.records = records
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.first_step = first_step
        self.rank = rank
        self.share = prompts_per_step // world_size

    def at(self, step: int) -> list[PromptRecord]:
        """This rank's prompts of `step` (from 0): P / world_size records."""
        start = step * self.prompts_per_step + self.rank * self.share
        size = len(self.records)
        batch = []
        for position in range(start, start + self.share):
            epoch, place = divmod(position, size)
            batch.append(self.records[epoch_order(self.seed, epoch, size)[place]])
        return batch

    def __iter__(self) -> Iterator[SealedBatch]:
        for step in count(self.first_step()):
            yield SealedBatch(self.at(step))


class PromptBatches(IterableDataset):
    """Given batches in order. Iterable, so that Lightning does not shard a second time what is one rank's part."""

    def __init__(self, batches: list[list[PromptRecord]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SealedBatch]:
        return map(SealedBatch, self.batches)


class PromptDataModule(LightningDataModule):
    """Both prompt files, read at once: a bad file is reported before any model is loaded.

    Training and validation steps receive `list[PromptRecord]`. Sharding is done here, so the trainer's
    `use_distributed_sampler` changes nothing. The training loader has no length: bound a run by `max_steps`, and give
    `val_check_interval` as a number of steps with `check_val_every_n_epoch: null`.

    Args:
        train: prompt file for training; `package:egrpo/...` names a file inside an installed package.
        val: prompt file for validation; None = that for training.
        prompts_per_step: P, prompts a training step takes over all ranks (groups of samples are made later).
        val_batch_size: prompts a rank takes at once in validation.
        seed: of the training order.
        group_across_ranks: every rank gets all prompts of a training step, to draw a part of each one's samples.
        url: where `published` is fetched from if it is not there.
        published: the place of the published file; a `train` elsewhere is never fetched.
        sha256: of the file that `url` must give.

    Raises:
        PromptFileError: a file cannot be read or has bad lines.
        UserError: a count is not positive; in `setup`: P does not divide among the ranks.
    """

    def __init__(
        self,
        train: str | None,
        val: str | None,
        prompts_per_step: int,
        val_batch_size: int = 64,
        seed: int = 0,
        group_across_ranks: bool = False,
        url: str | None = None,
        published: str | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        check_prompts_per_step(prompts_per_step)
        if val_batch_size < 1:
            raise UserError(f"val_batch_size is {val_batch_size}: give at least 1.")
        if not train:
            raise UserError("there is no prompt file: set data.train=FILE (JSON Lines, or plain text with .txt)")
        if url and train == published:
            fetch_prompts(url, resolve(train), sha256)
        self.train_records = read_prompts(train)
        self.val_records = self.train_records if val is None or Path(val) == Path(train) else read_prompts(val)
        self.prompts_per_step = prompts_per_step
        self.val_batch_size = val_batch_size
        self.seed = seed
        self.group_across_ranks = group_across_ranks

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.group_across_ranks:
            check_prompts_per_step(self.prompts_per_step, self._place()[1])

    def train_dataloader(self) -> DataLoader:
        rank, world_size = (0, 1) if self.group_across_ranks else self._place()
        stream = PromptStream(
            self.train_records,
            self.prompts_per_step,
            self.seed,
            first_step=self._finished_steps,
            rank=rank,
            world_size=world_size,
        )
        return DataLoader(stream, batch_size=None, num_workers=0)

    def val_dataloader(self) -> DataLoader:
        batches = val_batches(self.val_records, self.val_batch_size, *self._place())
        return DataLoader(PromptBatches(batches), batch_size=None, num_workers=0)

    def on_after_batch_transfer(self, batch: SealedBatch, dataloader_idx: int) -> list[PromptRecord]:
        return batch.records

    def _place(self) -> tuple[int, int]:
        """(rank, world size) of the trainer that holds this; (0, 1) without one."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _finished_steps(self) -> int:
        # `processed` counts a batch from the end of its training step on, before the callbacks that write checkpoints
        # run. `completed` lags behind there, `global_step` counts optimizer steps, `fetched` runs ahead.
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]


def check_prompts_per_step(prompts_per_step: int, world_size: int = 1) -> None:
    """Raises UserError unless P is positive and divides among the ranks."""
    if prompts_per_step < 1:
        raise UserError(f"prompts_per_step is {prompts_per_step}: give at least 1 prompt a step.")
    if prompts_per_step % world_size:
        near = max(1, round(prompts_per_step / world_size)) * world_size
        raise UserError(
            f"prompts_per_step counts over all ranks, and {prompts_per_step} does not divide among {world_size}: "
            f"give a multiple, such as {near}, or spread each prompt's samples with data.group_across_ranks=true."
        )


def check_samples_per_step(prompts: int, group_size: int, world_size: int) -> None:
    """Raises UserError unless the samples of a step divide among the ranks."""
    if prompts * group_size % world_size:
        raise UserError(
            f"data.group_across_ranks=true spreads the {prompts} x {group_size} samples of a step over all ranks, and "
            f"they do not divide among {world_size}: change data.prompts_per_step or rollout.group_size"
        )


def val_batches(
    records: list[PromptRecord], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[PromptRecord]]:
    """This rank's part records[rank::world_size] in batches, in order, nothing repeated.

    Every rank gets the same number of batches, or collective operations in a step would wait for ever; for that the
    last batch may hold one record more than `batch_size`, and is empty on some ranks where there are fewer records than
    ranks.
    """
    part = records[rank::world_size]
    full = max(0, -(-(len(records) // world_size) // batch_size) - 1)  # batches before the last
    return [part[i * batch_size : (i + 1) * batch_size] for i in range(full)] + [part[full * batch_size :]]
