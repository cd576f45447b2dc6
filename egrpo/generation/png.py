"""PNG files that tell what they are of, and files that are there whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from egrpo import __version__
from egrpo.base.files import write_whole as write_whole

END = b"IEND\xaeB`\x82"  # the last bytes of every PNG file


def png_bytes(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """A PNG file with UTF-8 texts (iTXt) by name; no time is in it, so equal images are equal files."""
    info, buffer = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_itxt(name, text)
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def is_whole(path: Path) -> bool:
    """Whether it is a PNG file to its end."""
    try:
        with path.open("rb") as file:
            file.seek(-min(len(END), file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read() == END
    except FileNotFoundError:
        return False


def versions() -> str:
    """Of what draws the images: "egrpo 0.1.0, torch 2.13.0, transformers 5.23.0"."""
    return ", ".join([f"egrpo {__version__}", *(f"{name} {version(name)}" for name in ("torch", "transformers"))])
