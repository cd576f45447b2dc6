"""From a table of artifacts to model directories: what it would take, doing it, and how to do it by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from egrpo.downloads.artifacts import Artifact, DownloadError, lacking
from egrpo.downloads.hub import UnreachableError, fetch

Convert = Callable[[Path, Path], Any]  # source folder, folder to write


def describe(artifacts: Sequence[Artifact], target: Path, keep_originals: bool) -> str:
    """Sources, licences, sizes and what there is to do for each artifact, then the total beside the free space."""
    lines = []
    for artifact in artifacts:
        state = "is there" if artifact.finished(target) else f"{_size(artifact.size, artifact.estimated)} to fetch"
        then = f", then to convert (kind={artifact.kind})" if artifact.kind and not artifact.finished(target) else ""
        lines.append(f"{artifact.final(target)}: {artifact.title}: {state}{then}")
        for source in artifact.sources:
            names = ", ".join(file.path for file in source.files)
            lines.append(f"    {source.repo} at {source.revision}: {names}")
            lines.append(f"    licence: {source.licence}")
    todo = [artifact for artifact in artifacts if not artifact.finished(target)]
    total = _size(sum(a.size for a in todo), any(a.estimated for a in todo))
    needed, free = space(todo, keep_originals), free_space(target)
    lines.append(f"total: {total} to fetch; takes up to {_size(needed)} of disk, {_size(free)} are free in {target}")
    return "\n".join(lines)


def space(artifacts: Sequence[Artifact], keep_originals: bool) -> int:
    """Bytes of disk at most: what is fetched, and converted copies as large, of which originals may then go."""
    converted = [artifact.size for artifact in artifacts if artifact.kind]
    more = sum(converted) if keep_originals else max(converted, default=0)
    return sum(artifact.size for artifact in artifacts) + more


def free_space(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(artifacts: Sequence[Artifact], target: Path, keep_originals: bool) -> None:
    """Raises DownloadError where the target is a file, or the disk is too small for what is not finished yet."""
    if file := next((path for path in (target, *target.parents) if path.is_file()), None):
        raise DownloadError(f"target={target}: {file} is a file: name a folder")
    todo = [artifact for artifact in artifacts if not artifact.finished(target)]
    # What a stopped run has fetched already takes its space now, and will not take it again.
    begun = sum(f.stat().st_size for a in todo for f in a.originals(target).rglob("*") if f.is_file())
    needed, free = space(todo, keep_originals) - begun, free_space(target)
    if needed > free:
        raise DownloadError(
            f"{target} has {_size(free)} free, but {_size(needed)} are needed: free some, name another folder with "
            "target=... (or EGRPO_MODELS), or fetch less at once (what=hps)"
        )


def obtain(artifact: Artifact, target: Path, convert: Callable[[], Convert] | None, keep_originals: bool) -> bool:
    """Fetches, checks, converts and puts in place; False where the artifact was finished already.

    Args:
        convert: Gives the converter when it is needed (its libraries take seconds to import); None = as published.

    Raises:
        DownloadError: the Hub cannot be reached (UnreachableError), a file is wrong, or the folder is in the way.
    """
    final, originals, part = artifact.final(target), artifact.originals(target), artifact.part(target)
    if artifact.finished(target):
        return False
    if final.is_dir() and any(final.iterdir()):
        raise DownloadError(
            f"{final} is there but lacks {', '.join(lacking(final))}: complete it, or move it away to have it fetched"
        )
    for source in artifact.sources:
        fetch(source, originals / source.folder)
    made = originals
    if convert is not None:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped in mid-conversion
        print(convert()(originals, part))
        made = part
    else:
        shutil.rmtree(originals / ".cache", ignore_errors=True)  # the client's notes on what it has fetched
    missing = lacking(made)
    if missing:
        raise DownloadError(
            f"{made} was made without {', '.join(missing)}: is {artifact.title} still published as told?"
        )
    made.rename(final)
    if convert is not None and not keep_originals:
        shutil.rmtree(originals)
    return True


def by_hand(artifacts: Sequence[Artifact], target: Path, reason: UnreachableError) -> str:
    """What to do without a connection: for each unfinished artifact the files, their folder, and the command."""
    lines = [f"{reason}; still missing, to be brought by hand (docs/models.md):"]
    for artifact in artifacts:
        if artifact.finished(target):
            continue
        folder = artifact.originals(target) if artifact.kind else artifact.final(target)
        for source in artifact.sources:
            names = ", ".join(file.path for file in source.files)
            lines.append(f"- {names} of {source.repo} (revision {source.revision}) into {folder / source.folder}")
        if artifact.kind:
            final = artifact.final(target)
            lines.append(f"  then python -m egrpo.convert kind={artifact.kind} source={folder} target={final}")
    return "\n".join(lines)


def _size(count: int, estimated: bool = False) -> str:
    """Bytes as the Hub writes them: powers of 1000."""
    about = "about " if estimated else ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{about}{count / scale:.2f} {unit}"
    return f"{about}{count} bytes"
