"""Checkpoints take their names when they are whole, and replace one of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from egrpo.checkpoints import beside, check_checkpoint, put_in_place
from egrpo.training.strategies import Files, WrittenBeside


def divided(path: Path, ranks: int) -> Path:
    """A folder with the names of DeepSpeed's parts."""
    (path / "checkpoint").mkdir(parents=True)
    for rank in range(ranks):
        (path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"part")
    return path


class Writer:
    """What a strategy writes: parts of two ranks, or half of them and then no more."""

    is_global_zero = True
    fails = False

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        pass

    def save_checkpoint(self, checkpoint: Any, filepath: Path, storage_options: Any = None) -> None:
        divided(filepath, 1 if self.fails else 2)
        if self.fails:
            raise OSError("no space left")


class Strategy(WrittenBeside, Writer):
    pass


def parts(path: Path) -> int:
    return len(list(path.glob("checkpoint/*")))


@pytest.mark.parametrize("before", ["nothing", "file", "more parts"])
def test_a_folder_replaces_what_had_its_name_as_a_whole(tmp_path, before: str):
    path = tmp_path / "last.ckpt"
    if before == "file":
        path.write_bytes(b"file")
    elif before == "more parts":
        divided(path, 4)
    Strategy().save_checkpoint({}, str(path))
    assert parts(path) == 2 and list(tmp_path.iterdir()) == [path]


def test_what_is_cut_short_leaves_the_last_checkpoint_whole(tmp_path):
    path, strategy = divided(tmp_path / "last.ckpt", 3), Strategy()
    strategy.fails = True
    with pytest.raises(OSError, match="no space"):
        strategy.save_checkpoint({}, path)
    assert parts(path) == 3
    strategy.fails = False
    strategy.save_checkpoint({}, path)
    assert parts(path) == 2 and list(tmp_path.iterdir()) == [path]


def test_a_file_replaces_a_folder(tmp_path):
    path = divided(tmp_path / "last.ckpt", 2)
    Files().save_checkpoint({"epoch": torch.tensor(3)}, path)
    assert Files().load_checkpoint(path)["epoch"] == 3 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("named", [False, True])
def test_a_kill_while_names_change_is_mended_by_the_next_checkpoint(tmp_path, named: bool):
    path = tmp_path / "last.ckpt"
    if named:
        divided(path, 1)
    divided(tmp_path / "last.ckpt.old", 1)
    divided(beside(path), 2)
    put_in_place(path)
    assert parts(path) == 2 and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_no_checkpoint_is_told(tmp_path):
    check_checkpoint(str(divided(tmp_path / "last.ckpt", 2)))
    with pytest.raises(ValueError, match="this folder is not a checkpoint; give one"):
        check_checkpoint(str(tmp_path))
