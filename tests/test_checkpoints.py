"""Checkpoints take their names when they are whole, and replace one of another kind."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from egrpo.atomic import discard, link
from egrpo.checkpoints import beside, check_checkpoint, last_checkpoint, put_in_place, saved_position
from egrpo.tensor_files import CheckpointError
from egrpo.training.saving import plain, queue, save_file
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


# A kill at any moment. What a save does to the disk goes through these, which are its moments.
MOMENTS = ("fsync", "rename", "replace", "symlink", "unlink", "mkdir", "rmdir")


def save_two(folder: Path, kind: str) -> None:
    """Saves steps 1 and 2 as a run does: the state, its link `last.ckpt`, and the removal of the one before."""
    last = folder / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        path = last.with_name(f"step_{step:06d}.ckpt") if "link" in kind else last
        state = {"global_step": step, "state_dict": {"w": torch.full((1000,), float(step))}}
        if "folder" in kind:
            part = beside(path)
            discard(part)
            (part / "checkpoint").mkdir(parents=True)
            for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
                torch.save({**state, "dp_world_size": 1}, part / "checkpoint" / name)
            put_in_place(path)
        else:
            save_file(state, path, 0.0 if "background" in kind else float("inf"))
        if "link" in kind:
            queue.run(partial(link, path, last))
            queue.run(partial(discard, last.with_name(f"step_{step - 1:06d}.ckpt")))
    queue.wait()


def killed_at(moment: int, task: Callable[[], None]) -> None:
    """Runs a task in this process and kills it before it touches the disk for the nth time."""
    count = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return call

    for name in MOMENTS:
        setattr(os, name, counted(getattr(os, name)))
    torch.save = counted(torch.save)
    task()


@pytest.mark.parametrize("kind", ["file", "file, link", "file, link, background", "folder", "folder, link"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, kind: str):
    fork = multiprocessing.get_context("fork")
    seen, moment, code = set(), 0, -signal.SIGKILL
    while code:
        moment += 1
        folder = tmp_path / str(moment)
        child = fork.Process(target=killed_at, args=(moment, partial(save_two, folder, kind)))
        child.start()
        child.join(60)
        code = child.exitcode
        assert code in (0, -signal.SIGKILL)
        last = last_checkpoint(folder)
        step = 0 if last is None else int(saved_position(last)["global_step"])
        assert step >= max(seen, default=0), f"the checkpoint of step {max(seen)} is lost by a kill at moment {moment}"
        seen.add(step)
        if last is not None:
            check_checkpoint(str(last))
        # Whatever was left, the next run saves all the same, and leaves nothing of it.
        if code and moment % 4 == 0:
            save_two(folder, kind)
            names = {path.name for path in (folder / "checkpoints").iterdir()}
            assert names - {"step_000001.ckpt"} == {"last.ckpt"} | ({"step_000002.ckpt"} if "link" in kind else set())
    assert seen == {0, 1, 2} and moment > 8


def test_a_moved_or_copied_folder_keeps_its_last_checkpoint(tmp_path):
    save_two(tmp_path / "run", "file, link")
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied", symlinks=True)
    shutil.rmtree(tmp_path / "moved")
    last = last_checkpoint(tmp_path / "copied")
    assert last is not None and last.is_symlink() and saved_position(last)["global_step"] == 2
    assert sum(path.stat().st_size for path in last.parent.iterdir() if not path.is_symlink()) < 2 * last.stat().st_size


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    save_two(tmp_path, "file, link")
    (tmp_path / "checkpoints" / "step_000002.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"a link to step_000002\.ckpt, which is not there"):
        last_checkpoint(tmp_path)


def test_without_symbolic_links_files_get_second_names(tmp_path, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for kind in ("file, link", "folder, link"):
        save_two(tmp_path / kind, kind)
        last = last_checkpoint(tmp_path / kind)
        assert last is not None and not last.is_symlink() and saved_position(last)["global_step"] == 2


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    assert plain({"a": [1, (2.0, Path("x"))]}) == {"a": [1, (2.0, "x")]}
    with pytest.raises(CheckpointError, match=r"entry callbacks\.Mine is of type Writer"):
        save_file({"callbacks": {"Mine": Writer()}}, tmp_path / "last.ckpt", float("inf"))
    assert not (tmp_path / "last.ckpt").exists()
