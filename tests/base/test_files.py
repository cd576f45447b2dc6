"""Locks, whole files, and what is said where nothing can be written."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from egrpo.analysis.storage import whole
from egrpo.base import files
from egrpo.base.errors import FileError, FolderTakenError, UserError
from egrpo.base.files import cannot_write, hold, whole_folder, write_json, write_whole, writing
from egrpo.entry import is_expected
from egrpo.generation.requests import Request
from egrpo.generation.store import Store
from egrpo.images import save_sheet
from egrpo.training.metrics_file import MetricsFile
from egrpo.training.validation import Row, save_rows
from egrpo.types import PromptRecord

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own that holds 200 kB."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_held_folder_is_refused_with_the_ways_out(tmp_path):
    with hold(tmp_path / "run", "the run in", remedy="choose another"):
        with pytest.raises(FolderTakenError) as taken, hold(tmp_path / "run", "the run in", remedy="choose another"):
            pass
        told = f"the run in {tmp_path / 'run'} is being written by another process: choose another"
        assert str(taken.value) == told
        waited: list[int] = []

        def waiting() -> None:
            waited.append(1)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), hold(tmp_path / "run", "the run in", waiting=waiting):
            pass
        assert waited == [1]
    with hold(tmp_path / "run", "the run in"):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    script = (
        "import sys; from pathlib import Path; from egrpo.base.files import hold\nwith hold(Path(sys.argv[1]), 'x'):"
    )
    subprocess.run([sys.executable, "-c", f"{script}\n import os; os.kill(os.getpid(), 9)", str(tmp_path)], cwd=REPO)
    with hold(tmp_path, "the run in"):
        pass


@pytest.mark.parametrize("number", [37, 38, errno.EOPNOTSUPP])
def test_without_locks_one_process_works_with_a_warning(tmp_path, monkeypatch, caplog, number: int):
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with hold(tmp_path, "the run in"):
                pass
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == [f"{tmp_path}: this file system has no locks"]
    store = Store(tmp_path / "images", [Request("a cat", 0)])
    assert store.done() == {}


def test_other_faults_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    def flock(*_: Any) -> None:
        raise OSError(errno.EBADF, "bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="bad file descriptor"), hold(tmp_path, "the run in"):
        pass


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, count, 3), dtype=np.uint8)


def into_metrics(folder: Path) -> None:
    (folder / "filler").write_bytes(bytes(196 * 1024))
    logger = MetricsFile(str(folder))
    for step in range(3000):
        logger.log_metrics({"train/loss": 0.1}, step)


def into_json(folder: Path) -> None:
    write_json(folder / "summary.json", {"a": "x" * 300_000})


def into_rows(folder: Path) -> None:
    save_rows(folder / "before.npz", [Row(PromptRecord("a cat"), "", noise(400), {})])


def into_sheet(folder: Path) -> None:
    (folder / "filler").write_bytes(bytes(180 * 1024))
    save_sheet(folder / "sheet.png", [noise(300)], ["a cat"], "title")


def into_image(folder: Path) -> None:
    with whole(folder / "image.png") as part:
        Image.fromarray(noise(400)).save(part, format="PNG")


def into_tensors(folder: Path) -> None:
    with writing(folder / "last.ckpt"):
        torch.save({"w": torch.rand(200, 1000)}, folder / "last.ckpt")


@pytest.mark.parametrize(
    "write, name",
    [
        (into_metrics, "metrics.csv"),
        (into_json, "summary.json"),
        (into_rows, "before.npz"),
        (into_sheet, "sheet.png"),
        (into_image, "image.png"),
        (into_tensors, "last.ckpt"),
    ],
)
def test_a_full_disk_is_named_with_file_and_remedy(full, write: Any, name: str):
    with pytest.raises(FileError) as caught:
        write(full)
    told = str(caught.value)
    assert told.startswith(f"cannot write {full / name}") and "No space left on device" in told
    assert told.endswith("free some space there, or write to another disk") and caught.value.errno == errno.ENOSPC
    assert is_expected(caught.value) and isinstance(caught.value, UserError)
    assert not (full / "summary.json").exists()


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.EACCES, "change its permissions, or write to another folder"),
        (errno.EROFS, "this file system is read-only"),
        (errno.EDQUOT, "your quota is used up"),
    ],
)
def test_other_refusals_of_the_system_are_named_too(tmp_path, monkeypatch, number: int, remedy: str):
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))  # of write(2): it knows no name

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(FileError, match=remedy) as caught:
        write_whole(tmp_path / "table.md", b"x")
    assert f"cannot write {tmp_path / 'table.md'}: {os.strerror(number)}" in str(caught.value)
    named = OSError(number, os.strerror(number), "/x/images")
    assert is_expected(named) and str(cannot_write(named, tmp_path)).startswith("cannot write /x/images: ")


def test_errors_that_are_no_disks_pass_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path / "x"):
        raise RuntimeError("a bug")
    with pytest.raises(FileNotFoundError), writing(tmp_path / "x"):
        (tmp_path / "nothing").read_bytes()
    assert not is_expected(RuntimeError("a bug")) and not is_expected(ValueError("tensor a must match tensor b"))
    assert not is_expected(OSError("a library says no more"))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "model") as part:
        (part / "weights").rename(part / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    for content in ("1", "2"):  # the second replaces the first, known by its mark
        with whole_folder(tmp_path / "model", replaces="mark") as part:
            (part / "mark").write_text(content)
            if content == "1":
                (part / "model-00001-of-00002.safetensors").touch()
                (part / "my notes").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["mark", "my notes"]
    assert (tmp_path / "model" / "mark").read_text() == "2"
    with pytest.raises(FolderTakenError, match=f"target={tmp_path}/model is there already and holds mark"):
        with whole_folder(tmp_path / "model"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(FolderTakenError, match="is a file"), whole_folder(tmp_path / "file"):
        pass


def test_an_export_on_a_full_disk_leaves_no_half_model(full):
    def export() -> None:
        with whole_folder(full / "model") as part:
            (part / "config.json").write_text("{}")
            (part / "model.safetensors").write_bytes(bytes(300 * 1024))

    with pytest.raises(FileError, match=rf"cannot write {full}/model: No space left on device"):
        export()
    assert list(full.iterdir()) == []


def test_one_way_to_write():
    from egrpo import provenance
    from egrpo.generation import png

    assert png.write_whole is files.write_whole and provenance.write_json is files.write_json
