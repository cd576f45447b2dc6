"""Files that are there whole or not at all, locks on folders, and what to do where a file cannot be written."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egrpo.base.errors import FileError, FolderTakenError

log = logging.getLogger(__name__)

LOCK = ".lock"  # the file in a folder that its writers hold
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of flock, on some network file systems
FULL = "free some space there, or write to another disk"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "your quota is used up: free some space there, or write to another disk",
    errno.EFBIG: "the file is larger than allowed there (ulimit -f, or the file system): write to another disk",
    errno.EACCES: "change its permissions, or write to another folder",
    errno.EPERM: "change its permissions, or write to another folder",
    errno.EROFS: "this file system is read-only: write to another folder",
    errno.EIO: "the disk reports a fault: write to another one",
    errno.ESTALE: "the network file system lost it: mount it again, or write to another folder",
    errno.ENOTDIR: "a part of this path is a file: write to another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
NEARLY_FULL = 2**20  # bytes; what libraries leave free where they fail to write


@contextmanager
def hold(
    folder: Path,
    what: str,
    *,
    name: str = LOCK,
    waiting: Callable[[], Any] | None = None,
    remedy: str = "wait for it, or end it",
) -> Iterator[int]:
    """Holds a folder for this process as long as the block runs. The lock ends with the process, however that ends.

    Args:
        folder: Is made.
        what: Names the folder's purpose in the error, as in "the study in".
        name: File in the folder that is locked.
        waiting: Called where another process holds it, which is then waited for; None = raise.
        remedy: What the user can do where another process holds the folder.

    Yields:
        The lock's file descriptor; a child process that inherits it holds the folder too.

    Raises:
        FolderTakenError: another process holds it.
        FileError: the folder or the file in it cannot be written.
    """
    with writing(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("a")
    with lock:
        if not _locked(lock, folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if waiting is None:
                raise FolderTakenError(f"{what} {folder} is being written by another process: {remedy}")
            waiting()
            _locked(lock, folder, fcntl.LOCK_EX)
        yield lock.fileno()


def _locked(lock: Any, folder: Path, operation: int) -> bool:
    """False where another process has the lock. A file system without locks gives one to everybody, with a warning."""
    try:
        fcntl.flock(lock, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if folder not in _unlocked:
            _unlocked.add(folder)
            log.warning("%s: this file system has no locks (%s): let one process at a time write there", folder, error)
    return True


_unlocked: set[Path] = set()


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Around whatever writes `path`: a disk that is full, read-only or forbidden is reported with name and remedy.

    Raises:
        FileError: in place of the system's error, or of a library's own where the disk is full.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise cannot_write(error, path) from error
    except Exception as error:  # torch, safetensors and arrow have errors of their own
        if "No space left on device" in str(error) or (type(error) is RuntimeError and _is_full(Path(path))):
            raise cannot_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path) from error
        raise


def cannot_write(error: OSError, path: Path | str | None) -> FileError:
    """The system's error as a sentence: which file, why, and what to do. The error's own file name comes first."""
    name = error.filename if isinstance(error.filename, str | os.PathLike) else path
    number = error.errno or 0
    where = Path(os.path.abspath(name)) if name is not None else None
    space = f" ({free_space(where) / 1e6:.1f} MB free)" if where is not None and number == errno.ENOSPC else ""
    told = FileError(f"cannot write {where or 'a file'}: {os.strerror(number)}{space}; {REMEDIES.get(number, FULL)}")
    told.errno = error.errno
    return told


def free_space(path: Path) -> int:
    """Bytes free where `path` is, or would be."""
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _is_full(path: Path) -> bool:
    return free_space(path) < NEARLY_FULL


def write_whole(path: Path, content: bytes) -> None:
    """Writes a partial file, then renames it: the name never stands for half a file. The folder is made.

    Raises:
        FileError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # processes that share a folder do not share this
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, written whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def whole_folder(target: Path, key: str = "target", replaces: str | None = None) -> Iterator[Path]:
    """A partial folder to fill, which becomes `target` when the block ends well and is removed when it does not.

    Args:
        target: Must not exist, or be empty, or hold the file `replaces`.
        key: The setting that names it.
        replaces: File by which an earlier result of the same kind is known, which the new one replaces as a whole.

    Raises:
        FolderTakenError: `target` is a file, or a folder that holds something else.
        FileError: it cannot be written.
    """
    target = Path(os.path.abspath(target))
    _check_free(target, key, replaces)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    old = part.with_suffix(".old")
    try:
        with writing(target):
            part.mkdir(parents=True)
            yield part
            _check_free(target, key, replaces)
            if target.is_dir():
                target.rename(old)
                _carry_over(old, part)
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if target.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def _carry_over(old: Path, new: Path) -> None:
    """Keeps what lies in a replaced folder besides a model, such as a user's notes."""
    for path in old.iterdir():
        if not (new / path.name).exists() and not path.match("model*"):
            path.rename(new / path.name)


def _check_free(target: Path, key: str, replaces: str | None) -> None:
    """Raises FolderTakenError where there is something that must not be replaced."""
    if target.is_dir():
        held = sorted(os.listdir(target))
        if held and replaces not in held:
            raise FolderTakenError(
                f"{key}={target} is there already and holds {held[0]}: name a new folder, or move this one away"
            )
    elif target.exists() or target.is_symlink():
        raise FolderTakenError(f"{key}={target} is a file: name a new folder")
