"""Files and folders that have their names only when they are whole, so that a kill at any moment leaves the former one.

What is new is written next to its place (`beside`), reaches the disk (`sync`), and is then renamed (`put_in_place`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def beside(path: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return path.with_name(f"{path.name}.part")


def discard(path: Path) -> None:
    """Removes a checkpoint, file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard_parts(folder: Path) -> None:
    """Removes what killed runs were writing in a folder of checkpoints."""
    for part in folder.glob("*.ckpt.part"):
        discard(part)


def sync(path: Path) -> None:
    """Returns when a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    sync_names(path)


def put_in_place(path: Path) -> None:
    """Gives a whole checkpoint its name; one that had it, file or folder, goes only then."""
    _take_name(beside(path), path)


def link(target: Path, path: Path) -> None:
    """Makes `path` another name of `target` in the same folder; what had the name goes only then.

    The link is relative, so that a folder may be moved. Where the file system has no symbolic links, the files
    themselves get second names.

    Raises:
        OSError: the file system has neither.
    """
    if path.is_symlink() and path.readlink() == Path(target.name):
        return
    new = path.with_name(f"{path.name}.link")
    discard(new)
    try:
        new.symlink_to(target.name)
    except OSError:
        _link_files(target, new)
    _take_name(new, path)


def recover(path: Path) -> None:
    """Gives a checkpoint its name back if a kill came while another was taking it."""
    old = _old(path)
    if not _there(path) and _there(old):
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            old.rename(path)


def _take_name(new: Path, path: Path) -> None:
    old = _old(path)
    if _is_folder(new) or _is_folder(path):
        if _there(path):
            discard(old)
            path.rename(old)
        new.rename(path)
    else:
        new.replace(path)  # at once, whatever file or link had the name
    sync_names(path.parent)
    discard(old)


def sync_names(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link_files(target: Path, new: Path) -> None:
    if target.is_dir():
        shutil.copytree(target, new, copy_function=lambda source, copy: os.link(source, copy))
    else:
        os.link(target, new)
