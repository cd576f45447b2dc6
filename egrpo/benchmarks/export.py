"""Drawing a benchmark's images into its layout, so that an export may be stopped at any time and gone on with."""

from __future__ import annotations

import fcntl
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from egrpo.base.errors import UserError
from egrpo.benchmarks.base import Benchmark
from egrpo.benchmarks.items import OWN, Item
from egrpo.benchmarks.manifest import Manifest, differences, text_hash, versions
from egrpo.benchmarks.results import FILE as SCORES
from egrpo.generation import BAR, DrawSettings, Request, batches, circumstances, device_name, draw
from egrpo.generation.png import write_whole
from egrpo.policies import model_hash
from egrpo.policy import JanusPolicy

FILE = f"{OWN}/manifest.json"
MANIFEST_FIELDS = ("cot", "cfg_weight", "temperature", "seed")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """Images that were drawn now, that were there before, and that other processes have yet to draw."""

    new: int
    before: int
    left: int

    def __str__(self) -> str:
        told = [f"{self.new} images drawn"]
        told += [f"{self.before} were there"] if self.before else []
        told += [f"{self.left} are left to other parts"] if self.left else []
        return ", ".join(told)


def export(
    folder: Path,
    benchmark: Benchmark,
    policy: JanusPolicy,
    settings: DrawSettings,
    label: str,
    *,
    batch_size: int = 32,
    shard: str = "1/1",
    stamp: str | None = None,
) -> Exported:
    """Draws what is missing.

    A batch is drawn whole, whatever is already there, so that an export that goes on repeats the arithmetic of one
    that was not stopped and ends with the same bytes.

    Args:
        folder: Where the export is made; may hold part of it.
        benchmark: What is asked for, and its layout.
        policy: Where it is to run.
        settings: How images are drawn.
        label: Name of the model.
        batch_size: Images drawn at once.
        shard: The part of the batches that this process draws, "1/1" = all.
        stamp: Of the request, kept with the images so that `already_there` knows it again; None = not known.

    Raises:
        UserError: the folder holds images of other settings, or such that do not tell theirs.
    """
    items = benchmark.items()
    for sentence in benchmark.warnings():
        log.warning("%s", sentence)
    wanted = dict(zip(requests_of(items), [(item, k) for item in items for k in range(len(item.files))], strict=True))
    parts = batches(list(wanted), batch_size, shard)
    missing = {(item.key, k) for item, k in benchmark.missing(folder)}
    claim(folder, manifest_of(policy, settings, items, model_hash(policy)), label, device_name(policy.device), stamp)
    own = [request for part in parts for request in part]
    places = {request: (item.key, k) for request, (item, k) in wanted.items()}
    new, before = 0, len(wanted) - len(missing)
    there = sum(places[request] not in missing for request in own)
    with tqdm(total=len(own), initial=there, desc="images", unit=" images", bar_format=BAR) as bar:
        for part in parts:
            absent = [n for n, request in enumerate(part) if places[request] in missing]
            if not absent:
                continue
            pictures = draw(policy, part, settings, {})
            for n in absent:
                benchmark.write_image(folder, *wanted[part[n]], pictures[n].image)
            new += len(absent)
            bar.update(len(absent))
    left = len(wanted) - before - new
    return Exported(new, before, len(benchmark.missing(folder)) if left else 0)


def already_there(folder: Path, benchmark: Benchmark, stamp: str | None) -> Exported | None:
    """What `export` would say where it had nothing to draw, found out without a policy; None where that must decide."""
    if stamp is None or not (folder / FILE).is_file():
        return None
    before, items = _read(folder / FILE), benchmark.items()
    manifest = Manifest.from_dict(before["manifest"])
    same = (before.get("request"), dict(manifest.versions)) == (stamp, versions())
    drawn = (manifest.prompts, manifest.images_per_prompt) == (prompts_hash(items), images_per_prompt(items))
    if not (same and drawn) or benchmark.missing(folder):
        return None
    return Exported(0, sum(len(item.files) for item in items), 0)


@contextmanager
def scoring(folder: Path) -> Iterator[bool]:
    """Whether this process scores the folder; False while another one of those that share its drawing does."""
    path = folder / FILE
    if not path.is_file():
        yield True
        return
    with path.open("r+b") as file:  # for writing: a shared disk locks nothing else
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.warning("%s cannot be locked (%s): two processes may score it", path, error)
        yield True


def scored_since_drawn(folder: Path, benchmark: Benchmark) -> bool:
    """Whether `scores.json` is newer than every image, so that another process has scored them all."""
    if not (folder / SCORES).is_file():
        return False
    files = [folder / path for item in benchmark.items() for path in item.files]
    return (folder / SCORES).stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in files)


def requests_of(items: Sequence[Item]) -> list[Request]:
    """One request for each image of the items, in order; where a prompt comes again its indices go on."""
    used: Counter[str] = Counter()
    found = []
    for item in items:
        first = used[item.prompt]
        used[item.prompt] += len(item.files)
        found += [Request(item.prompt, first + k) for k in range(len(item.files))]
    return found


def manifest_of(policy: JanusPolicy, settings: DrawSettings, items: Sequence[Item], model: str) -> Manifest:
    """All that decides the export's images; `model` tells the weights."""
    found = circumstances(policy, settings)
    templates = found.pop("templates")
    return Manifest(
        model=model,
        prompts=prompts_hash(items),
        template=text_hash(json.dumps(templates, sort_keys=True)),
        images_per_prompt=images_per_prompt(items),
        versions=versions(),
        **{name: found.pop(name) for name in MANIFEST_FIELDS},
        drawing=found,
    )


def claim(folder: Path, manifest: Manifest, label: str, device: str, stamp: str | None = None) -> None:
    """Writes the folder's manifest, or compares with the one that is there.

    Raises:
        UserError: the folder's images were drawn otherwise, or nothing tells how.
    """
    path = folder / FILE
    if not path.is_file():
        _refuse_untold(folder)
        content = {"label": label, "device": device, "manifest": asdict(manifest)}
        content |= {"request": stamp} if stamp else {}
        write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        return
    before = _read(path)
    old = Manifest.from_dict(before["manifest"])
    found = [text for text in differences(old, manifest) if not text.startswith("versions.")]
    found += [f"model: {old.model[:12]} and {manifest.model[:12]}"] if old.model != manifest.model else []
    if found:
        raise UserError(
            f"{folder} holds images that were drawn otherwise (before and now: {'; '.join(found)}); draw into another "
            "folder (hydra.run.dir=...), or with the settings of before"
        )
    if (old.versions, before.get("device")) != (manifest.versions, device):
        log.warning("this export goes on with other versions or on another device: the last digit may differ")


def told_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where it has none. Raises a UserError where it cannot be read."""
    path = folder / FILE
    return Manifest.from_dict(_read(path)["manifest"]) if path.is_file() else None


def require_prompts(folder: Path, manifest: Manifest, items: Sequence[Item]) -> None:
    """Raises a UserError unless the folder's images were drawn for these prompts, in this order and number."""
    drawn = (manifest.prompts, manifest.images_per_prompt)
    if drawn != (prompts_hash(items), images_per_prompt(items)):
        raise UserError(
            f"the images in {folder} were drawn for other prompts, in another order or number, than this benchmark "
            "has: name the prompts that they were drawn for (benchmark, benchmark.prompts, benchmark.limit, "
            "benchmark.images_per_prompt)"
        )


def prompts_hash(items: Sequence[Item]) -> str:
    return text_hash(*[item.prompt for item in items])


def images_per_prompt(items: Sequence[Item]) -> int:
    return max(len(item.files) for item in items)


def told_label(folder: Path) -> str:
    """The name of the model that drew a folder's images; else the folder's own."""
    path = folder / FILE
    return str(_read(path)["label"]) if path.is_file() else folder.resolve().name


def _refuse_untold(folder: Path) -> None:
    """Raises a UserError where there are images of which nothing is known."""
    if folder.is_dir() and any(folder.rglob("*.png")):
        raise UserError(
            f"{folder} holds images, but no {FILE} that tells how they were drawn: draw into another folder "
            "(hydra.run.dir=...), or score them as they are with export=false"
        )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        Manifest.from_dict(content["manifest"])
        content["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it together with the images, and export again"
        ) from error
    return content
