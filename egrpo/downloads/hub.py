"""Fetching files from the Hugging Face Hub, each compared with its published size and SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from egrpo.downloads.artifacts import DownloadError, Source


class UnreachableError(DownloadError):
    """The Hub cannot be reached; the message says why."""


@dataclass(frozen=True)
class Published:
    """One file as the Hub lists it."""

    path: str
    size: int | None  # bytes
    sha256: str | None  # only of large files


def listing(source: Source) -> tuple[str, list[Published]]:
    """The commit that the revision stands for, and the wanted files of the repository.

    Raises:
        UnreachableError: there is no connection.
        DownloadError: repository, revision or a file is not there, or a file is not the one that is pinned.
    """
    with _told(source):
        info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    siblings = {
        s.rfilename: Published(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None) for s in info.siblings or []
    }
    wanted: dict[str, Published] = {}
    for file in source.files:
        found = [published for path, published in sorted(siblings.items()) if file.matches(path)]
        if not found and not file.optional:
            raise DownloadError(
                f"{source.repo} at {source.revision} has no file {file.path} (it has {', '.join(sorted(siblings))}): "
                "the repository has changed since its table in conf/what was written"
            )
        for published in found:
            if file.sha256 and published.sha256 and published.sha256 != file.sha256:
                raise DownloadError(
                    f"{source.repo} at {source.revision}: the Hub publishes {published.path} with SHA-256 "
                    f"{published.sha256}, but conf/what pins {file.sha256}; nothing was fetched. It is another file now"
                )
            sha256 = file.sha256 or published.sha256
            wanted[published.path] = Published(published.path, published.size, sha256)
    return info.sha or source.revision, list(wanted.values())


def fetch(source: Source, folder: Path) -> None:
    """Brings the source's files into `folder`; what is there already stays, what was begun goes on.

    Raises:
        UnreachableError: there is no connection.
        DownloadError: see `listing`; or a file's size or SHA-256 is wrong, and the file was removed.
    """
    commit, files = listing(source)
    for file in files:
        with _told(source, file.path):
            path = Path(hf_hub_download(source.repo, file.path, revision=commit, local_dir=folder))
        check(path, file, source)


def check(path: Path, file: Published, source: Source) -> None:
    """Compares size and SHA-256 with those published; a file that differs is removed."""
    size = path.stat().st_size
    faults = []
    if file.size is not None and size != file.size:
        faults.append(f"has {size} bytes, published are {file.size}")
    elif file.sha256 is not None:
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != file.sha256:
            faults.append(f"has SHA-256 {found}, expected is {file.sha256}")
    if faults:
        path.unlink()
        raise DownloadError(
            f"{file.path} of {source.repo} {faults[0]}: it was removed; run the same command again, and if that does "
            "not help, do not use the file"
        )


@contextmanager
def _told(source: Source, path: str = "") -> Iterator[None]:
    """Errors of the Hub's client in one sentence."""
    try:
        yield
    except (HTTPError, LocalEntryNotFoundError, XetDownloadError, ConnectionError, TimeoutError) as error:
        # The client says "not here either" where a request failed; why it failed is the cause.
        wrapped = isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None
        raise _explained(error.__cause__ if wrapped else error, source, path) from error


def _explained(error: BaseException | None, source: Source, path: str) -> DownloadError:
    what = f"{path} of {source.repo}" if path else source.repo
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError("HF_HUB_OFFLINE is set")
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"{what} is only given to accounts that accepted its terms: accept them on its page, and give your token "
            "with HF_TOKEN=... or `hf auth login`"
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return DownloadError(
            f"{constants.ENDPOINT} has no {source.repo} at revision {source.revision}, or not for you (HF_TOKEN)"
        )
    if isinstance(error, HfHubHTTPError):
        return DownloadError(
            f"{constants.ENDPOINT} answered {error.response.status_code} for {what}: try again later; what was fetched "
            "is kept"
        )
    reason = str(error).splitlines() or [type(error).__name__]
    return UnreachableError(f"{constants.ENDPOINT} does not answer: {reason[0]}")
