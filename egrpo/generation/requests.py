"""Which images are asked for: prompts from a file or a list, an index for every image, names for their files."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError
from egrpo.data import read_prompts
from egrpo.data.records import faults_of, record_of
from egrpo.paths import resolve
from egrpo.types import PromptRecord

PLAIN: dict[str, Any] = {"nouns": [], "task_type": "non"}  # of a prompt about which nothing else is known
SLUG_LENGTH = 40
HASH_LENGTH = 16


@dataclass(frozen=True)
class Request:
    """One image that is asked for. Its samples are those of (seed, prompt, index)."""

    prompt: str
    index: int
    record: dict[str, Any] = field(default_factory=dict, compare=False)  # what the file tells beside the prompt

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt, self.index

    @property
    def file(self) -> str:
        """Where the image lies, from the folder's top."""
        return f"images/{prompt_name(self.prompt)}_{self.index:04d}.png"


def prompt_name(prompt: str) -> str:
    """A file name for any prompt: its letters and digits, and a hash that keeps prompts apart.

    Lower-case ASCII of at most 57 characters, so that it holds on file systems that do not tell cases apart, and it
    never ends in a dot nor is a name that a system reserves.
    """
    plain = unicodedata.normalize("NFKD", prompt[: 4 * SLUG_LENGTH]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:HASH_LENGTH]
    return f"{slug or 'prompt'}-{digest}"


def prompt_records(prompts: Any) -> list[PromptRecord]:
    """Records of `prompts`: the path of a file, or a list of texts.

    Raises:
        PromptFileError: a file that cannot be used; every bad line is named.
        UserError: a list that is empty or holds something else.
    """
    if isinstance(prompts, str):
        if not prompts.strip():
            raise UserError("prompts= is empty: give a file, or a list such as prompts='[\"a red circle\"]'")
        if not resolve(prompts).exists():
            told = (
                f"there is no such file seen from {Path.cwd()}; a list of texts is written prompts='[\"a red circle\"]'"
            )
            raise UserError(f"prompts={prompts}: {told}")
        return read_prompts(prompts, defaults=PLAIN)
    if not isinstance(prompts, Sequence) or not prompts:
        raise UserError(f"prompts={prompts}: give a file, or a list such as prompts='[\"a red circle\"]'")
    rows = [{"prompt": prompt, **PLAIN} for prompt in prompts]
    for number, row in enumerate(rows, start=1):
        for fault, mend in faults_of(row):
            raise UserError(f"prompts: entry {number} of the list: {fault}; {mend}")
    return [record_of(row) for row in rows]


def requests_for(records: Sequence[PromptRecord], num_images: int) -> list[Request]:
    """`num_images` requests a record, in order; where a prompt comes again its indices go on, so that images differ.

    Raises:
        UserError: `num_images` is no positive whole number.
    """
    check_positive("num_images", num_images)
    used: Counter[str] = Counter()
    found = []
    for record in records:
        first = used[record.prompt]
        used[record.prompt] += num_images
        about = {name: value for name, value in record.to_dict().items() if name != "prompt"}
        about = {} if about == PLAIN else about
        found += [Request(record.prompt, first + i, about) for i in range(num_images)]
    return found


def batches(requests: Sequence[Request], size: int, shard: str = "1/1") -> list[list[Request]]:
    """What is drawn at once: `size` requests in order; of a shard i/n every n-th batch.

    A batch is the same whatever is already there, so that a run that goes on draws what it would have drawn.

    Raises:
        UserError: `size` or `shard` makes no sense.
    """
    check_positive("batch_size", size)
    part = re.fullmatch(r"(\d+)/(\d+)", str(shard).strip())
    if part is None or not 1 <= int(part[1]) <= int(part[2]):
        raise UserError(f"shard={shard}: give part and number of parts, from shard=1/4 to shard=4/4")
    whole = [list(requests[start : start + size]) for start in range(0, len(requests), size)]
    return whole[int(part[1]) - 1 :: int(part[2])]


def check_positive(name: str, value: Any) -> None:
    """Raises UserError unless it is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}={value}: give a whole number of at least 1")
