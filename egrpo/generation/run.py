"""Filling a folder with images, so that it may be stopped at any time and gone on with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from egrpo.generation.drawing import DrawSettings, draw, identity
from egrpo.generation.png import versions
from egrpo.generation.requests import Request, prompt_name
from egrpo.generation.sheets import MOST, sheet_png
from egrpo.generation.store import MANIFEST, Row, Store
from egrpo.policy import JanusPolicy

BAR = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} [{elapsed} gone, {remaining} left, {rate_noinv_fmt}]"


def fill(
    folder: Path,
    policy: JanusPolicy,
    label: str,
    settings: DrawSettings,
    requests: Sequence[Request],
    parts: Sequence[Sequence[Request]],
    *,
    sheets: bool = True,
    stamp: str | None = None,
) -> tuple[int, int]:
    """Draws what is missing, a part at once, with a progress bar; a part is drawn whole though some of it is there.

    Args:
        folder: Is made; may hold images of an earlier run.
        policy: Where it is to run.
        label: Name of the model in files.
        settings: How images are drawn.
        requests: All images that the folder is to hold, in the order of `generations.jsonl`.
        parts: What this process draws of them.
        sheets: Whether contact sheets are made.
        stamp: Of the request, kept with the images so that `already_there` knows it again; None = not known.

    Returns:
        images of the requests that are drawn now, and that were there before.

    Raises:
        UserError: the folder holds images of other settings.
    """
    store = Store(folder, requests)
    manifest = store.claim(
        {
            "settings": identity(policy, settings),
            "model": label,
            "versions": versions(),
            "device": device_name(policy.device),
            **({"request": stamp} if stamp else {}),
        }
    )
    about = {"model": f"{manifest['model']} sha256:{manifest['settings']['model_hash']}", "versions": versions()}
    done = store.done()
    sheet = Sheets(store, requests, done) if sheets else None
    own = [request.key for part in parts for request in part]
    before = len(requests) - sum(request.key not in done for request in requests)
    new = 0
    with tqdm(
        total=len(own), initial=sum(k in done for k in own), desc="images", unit=" images", bar_format=BAR
    ) as bar:
        for part in parts:
            added = add_missing(store, policy, part, settings, about, done, sheet)
            new += added
            bar.update(added)
    store.finish()
    if sheet:
        if len(own) < len(requests):
            done |= store.done()  # what other processes drew
        sheet.make(requests)
    store.tidy()
    return new, before


def already_there(folder: Path, requests: Sequence[Request], stamp: str | None, *, sheets: bool = True) -> bool:
    """Whether the folder holds all images, drawn by the same request; then what belongs to them is made too."""
    if not (folder / MANIFEST).is_file():
        return False
    store = Store(folder, requests)
    if not store.holds(stamp, versions()):
        return False
    store.finish()
    if sheets:
        Sheets(store, requests, store.done()).make(requests)
    store.tidy()
    return True


def add_missing(
    store: Store,
    policy: JanusPolicy,
    part: Sequence[Request],
    settings: DrawSettings,
    about: Mapping[str, str],
    done: dict[tuple[str, int], Row],
    sheet: Sheets | None,
) -> int:
    """Draws a part where some of it is missing in `done`, puts that in place, in `done` and on sheets; how many."""
    missing = [number for number, request in enumerate(part) if request.key not in done]
    if not missing:
        return 0
    pictures = draw(policy, part, settings, about)
    requested = [part[number] for number in missing]
    if sheet:
        sheet.outdate(requested)
    done |= store.add(requested, [pictures[number] for number in missing])
    if sheet:
        sheet.make(requested)
    return len(missing)


class Sheets:
    """Contact sheets of prompts whose images are all there, each made once."""

    def __init__(self, store: Store, requests: Sequence[Request], done: dict[tuple[str, int], Row]) -> None:
        self.store, self.done = store, done
        self.wanted: dict[str, list[Request]] = defaultdict(list)
        for request in requests:
            self.wanted[request.prompt].append(request)

    def path(self, prompt: str) -> Path:
        return self.store.folder / "sheets" / f"{prompt_name(prompt)}.png"

    def outdate(self, requests: Sequence[Request]) -> None:
        """Removes the sheets of prompts that get another image."""
        for prompt in {request.prompt for request in requests}:
            self.path(prompt).unlink(missing_ok=True)

    def make(self, requests: Sequence[Request]) -> None:
        """Those of the requests' prompts that can be made and are missing."""
        for prompt in dict.fromkeys(request.prompt for request in requests):
            wanted = self.wanted[prompt]
            if self.path(prompt).is_file() or any(request.key not in self.done for request in wanted):
                continue
            cells = []
            for request in wanted[:MOST]:
                with Image.open(self.store.folder / request.file) as image:
                    cells.append((image.copy(), f"{request.index}. {self.done[request.key]['plan']}"))
            self.store.put(self.path(prompt), sheet_png(prompt, cells, len(wanted)))


def device_name(device: torch.device) -> str:
    """What computes: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def summary(new: int, before: int, total: int, seconds: float) -> str:
    """One line that says what was done."""
    told: list[Any] = [f"{new} images drawn in {seconds:.1f} s ({new / max(seconds, 1e-9):.2f} images/s)"]
    told += [f"{before} were there"] if before else []
    told += [f"{total - new - before} are left to other parts"] if new + before < total else []
    return ", ".join(told)
