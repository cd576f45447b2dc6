"""The prompt stream: what step s sees follows from s alone, over ranks, epochs and restarts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from egrpo import distributed
from egrpo.data import PromptDataModule, PromptFileError, PromptRecord
from egrpo.data.datamodule import PromptStream, check_samples_per_step, epoch_order, val_batches
from egrpo.training.settings import RolloutSettings, own_samples


def records(size: int) -> list[PromptRecord]:
    return [PromptRecord(f"prompt {i}") for i in range(size)]


def prompts(batch: list[PromptRecord]) -> list[str]:
    return [record.prompt for record in batch]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"prompt {i}", "nouns": [], "task_type": "non"} for i in range(7)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


class Recorder(LightningModule):
    """Records what each step received. Takes two optimizer steps a batch: global_step is not the batch number."""

    def __init__(self, crash_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.crash_at = crash_at
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []
        self.validated: list[list[str]] = []

    def training_step(self, batch: list[PromptRecord], batch_idx: int) -> None:
        assert type(batch) is list
        assert all(type(record) is PromptRecord for record in batch)
        if batch_idx == self.crash_at:
            raise RuntimeError("crash")
        self.seen.append(prompts(batch))
        for _ in range(2):
            self.optimizers().step()

    def validation_step(self, batch: list[PromptRecord], batch_idx: int) -> None:
        self.validated.append(prompts(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, data: PromptDataModule, batches: int, ckpt: str | None = None, **settings: object) -> Recorder:
    module = Recorder(settings.pop("crash_at", None))
    defaults = {"limit_val_batches": 0, "precision": "32-true", "check_val_every_n_epoch": None}
    trainer = Trainer(
        **{**defaults, **settings},
        default_root_dir=root,
        max_steps=2 * batches,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(root, filename="{step}", every_n_train_steps=4, save_top_k=-1),  # 2 batches
            OnExceptionCheckpoint(root, filename="crash"),
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, ckpt_path=ckpt)
    return module


def test_stream_is_the_concatenation_of_seeded_permutations() -> None:
    stream = PromptStream(records(7), prompts_per_step=3, seed=5)
    drawn = [prompt for step in range(7) for prompt in prompts(stream.at(step))]  # 21 positions = 3 epochs
    epochs = [drawn[0:7], drawn[7:14], drawn[14:21]]
    assert all(sorted(epoch) == [f"prompt {i}" for i in range(7)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = PromptStream(records(7), prompts_per_step=3, seed=6)
    assert [prompts(other.at(step)) for step in range(7)] != [prompts(stream.at(step)) for step in range(7)]


def test_order_is_pinned() -> None:
    """A change here breaks the resume of every run already started."""
    assert epoch_order(0, 0, 6) == [0, 5, 1, 4, 3, 2]
    assert epoch_order(0, 1, 6) == [2, 0, 1, 5, 3, 4]


def test_a_step_larger_than_the_file_wraps() -> None:
    drawn = prompts(PromptStream(records(2), prompts_per_step=6).at(1))
    assert sorted(drawn) == ["prompt 0"] * 3 + ["prompt 1"] * 3


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_take_what_one_process_takes(world_size: int) -> None:
    single = PromptStream(records(7), prompts_per_step=8, seed=1)
    ranks = [
        PromptStream(records(7), prompts_per_step=8, seed=1, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for step in range(5):
        assert [p for stream in ranks for p in prompts(stream.at(step))] == prompts(single.at(step))


def test_iteration_starts_where_first_step_says_each_time() -> None:
    start = [4]
    stream = PromptStream(records(7), prompts_per_step=3, first_step=lambda: start[0])
    assert next(iter(stream)).records == stream.at(4)
    start[0] = 9
    assert next(iter(stream)).records == stream.at(9)


@pytest.mark.parametrize("resume_after", [2, 4])
def test_killed_and_resumed_run_sees_what_the_uninterrupted_run_saw(
    tmp_path: Path, file: str, resume_after: int
) -> None:
    whole = fit(tmp_path / "whole", PromptDataModule(file, file, 3, seed=2), batches=8)
    assert len(whole.seen) == 8
    checkpoint = str(tmp_path / "whole" / f"step={2 * resume_after}.ckpt")
    resumed = fit(tmp_path / "resumed", PromptDataModule(file, file, 3, seed=2), batches=8, ckpt=checkpoint)
    assert resumed.seen == whole.seen[resume_after:]
    # The second leg's checkpoint is as good as the first's.
    again = fit(
        tmp_path / "again",
        PromptDataModule(file, file, 3, seed=2),
        batches=8,
        ckpt=str(tmp_path / "resumed" / "step=12.ckpt"),
    )
    assert again.seen == whole.seen[6:]


def test_a_step_that_crashed_is_done_again(tmp_path: Path, file: str) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, PromptDataModule(file, file, 3), batches=6, crash_at=3)
    resumed = fit(tmp_path, PromptDataModule(file, file, 3), batches=6, ckpt=str(tmp_path / "crash.ckpt"))
    stream = PromptStream(PromptDataModule(file, file, 3).train_records, 3)
    assert resumed.seen == [prompts(stream.at(step)) for step in (3, 4, 5)]


def test_resume_from_a_checkpoint_written_by_validation_and_with_bounded_epochs(tmp_path: Path, file: str) -> None:
    data = PromptDataModule(file, file, 2, val_batch_size=4, seed=3)
    settings = {"limit_train_batches": 3, "limit_val_batches": 2, "check_val_every_n_epoch": 1}
    whole = fit(tmp_path / "whole", data, batches=9, **settings)
    stream = PromptStream(data.train_records, 2, seed=3)
    assert whole.seen == [prompts(stream.at(step)) for step in range(9)]
    for batches in (2, 4, 6):
        fresh = PromptDataModule(file, file, 2, val_batch_size=4, seed=3)
        checkpoint = str(tmp_path / "whole" / f"step={2 * batches}.ckpt")
        resumed = fit(tmp_path / f"from{batches}", fresh, batches=9, ckpt=checkpoint, **settings)
        assert resumed.seen == whole.seen[batches:]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true"])
def test_steps_receive_plain_records_at_every_precision(tmp_path: Path, file: str, precision: str) -> None:
    data = PromptDataModule(file, file, 2, val_batch_size=3)
    module = fit(tmp_path, data, batches=2, precision=precision, limit_val_batches=1.0, val_check_interval=2)
    assert len(module.seen) == 2
    expected = [[f"prompt {i}" for i in part] for part in ((0, 1, 2), (3, 4, 5), (6,))]
    assert module.validated[-3:] == expected


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [(7, 3, 1), (7, 3, 2), (9, 1, 2), (8, 2, 4), (2, 64, 2)])
def test_validation_parts_are_whole_and_equally_many(size: int, batch_size: int, world_size: int) -> None:
    everything = records(size)
    ranks = [val_batches(everything, batch_size, r, world_size) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    for r, batches in enumerate(ranks):
        assert [record for batch in batches for record in batch] == everything[r::world_size]
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert 1 <= len(batches[-1]) <= batch_size + (world_size > 1)


def test_counts_that_cannot_work_are_refused(file: str) -> None:
    with pytest.raises(ValueError, match="prompts_per_step is 0"):
        PromptDataModule(file, file, 0)
    with pytest.raises(ValueError, match="prompts_per_step is -2"):
        PromptDataModule(file, file, -2)
    with pytest.raises(ValueError, match="val_batch_size is 0"):
        PromptDataModule(file, file, 1, val_batch_size=0)
    with pytest.raises(ValueError, match=r"10 does not divide among 4: give a multiple, such as 8, or "):
        PromptStream(records(7), prompts_per_step=10, world_size=4)


@pytest.mark.parametrize(("prompts", "world_size"), [(3, 2), (1, 8), (2, 16)])
def test_spread_samples_are_all_drawn_once(monkeypatch, prompts: int, world_size: int) -> None:
    settings = RolloutSettings(group_size=8, group_across_ranks=True)
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    drawn = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        drawn += list(zip(*own_samples(records(prompts), settings)))
    assert drawn == [(record, i) for record in records(prompts) for i in range(8)]


def test_samples_that_do_not_divide_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the 3 x 8 samples of a step over all ranks, and they do not divide among 16"
    ):
        check_samples_per_step(3, 8, 16)


def test_a_rank_without_validation_prompts_gets_an_empty_batch() -> None:
    assert [val_batches(records(1), 4, rank, 2) for rank in (0, 1)] == [[records(1)], [[]]]


def test_bad_file_is_reported_on_construction(tmp_path: Path, file: str) -> None:
    with pytest.raises(PromptFileError, match=r"absent\.jsonl does not exist"):
        PromptDataModule(file, str(tmp_path / "absent.jsonl"), 1)
