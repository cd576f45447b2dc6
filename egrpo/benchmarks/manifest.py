"""What decides a benchmark's number beside the weights: kept with it, and compared before two numbers are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from egrpo.base.errors import UserError

PACKAGES = ("egrpo", "torch", "transformers", "numpy", "pillow")
BLOCK = 1 << 20  # bytes
HASH_LENGTH = 64  # hex digits of a SHA-256
EXPECTED_TO_DIFFER = ("model",)  # two models are what one compares


@dataclass(frozen=True)
class Manifest:
    """How a folder of images was drawn."""

    model: str  # `model_hash` of its weights
    prompts: str  # `text_hash` of the prompts, in order
    cot: bool
    cfg_weight: float
    temperature: float
    template: str  # the template's text, or its hash
    seed: int
    images_per_prompt: int
    drawing: Mapping[str, Any] = field(default_factory=dict)  # further settings of the rollout: top_k, padding, ...
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Manifest:
        """Inverse of `dataclasses.asdict`.

        Raises:
            UserError: keys are missing, or there are others.
        """
        names = {f.name for f in fields(Manifest)}
        if set(row) != names:
            raise UserError(f"a manifest has the keys {sorted(names)}, not {sorted(row)}")
        return Manifest(**row)


def differences(first: Manifest, second: Manifest) -> list[str]:
    """Every setting in which two manifests differ, other than the model: "cfg_weight: 5.0 and 1.0"."""
    a, b = _flat(asdict(first)), _flat(asdict(second))
    return [
        f"{name}: {_shown(a.get(name, 'not told'))} and {_shown(b.get(name, 'not told'))}"
        for name in dict.fromkeys([*a, *b])
        if name not in EXPECTED_TO_DIFFER and a.get(name) != b.get(name)
    ]


def warning(first: Manifest | None, second: Manifest | None, names: tuple[str, str]) -> str:
    """What to know before the results of two named folders are compared; "" where they were drawn alike."""
    untold = [name for name, manifest in zip(names, (first, second)) if manifest is None]
    if first is None or second is None:
        return f"{' and '.join(untold)}: not told how the images were drawn, so the numbers may not be comparable"
    found = differences(first, second)
    if not found:
        return ""
    return f"{names[0]} and {names[1]} were not drawn alike, so their numbers are not comparable: {'; '.join(found)}"


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def model_hash(folder: Path) -> str:
    """SHA-256 over names and contents of a model's config and weights, in order of their names.

    Raises:
        UserError: the folder holds no weights.
    """
    paths = sorted(path for pattern in ("config.json", "*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not any(path.suffix in (".safetensors", ".bin") for path in paths):
        raise UserError(f"{folder} holds no weights (*.safetensors) to tell a model by: name the model's folder")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def text_hash(*texts: str) -> str:
    """SHA-256 over texts and where each ends."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def _shown(value: Any) -> Any:
    """A hash by its first digits; all else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == HASH_LENGTH and value.isalnum() else value


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in row.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
