"""Images of prompts: which are asked for, drawing them, and a folder that keeps them."""

from egrpo.generation.drawing import DrawSettings, Picture, chosen, draw, identity
from egrpo.generation.generator import Generator
from egrpo.generation.requests import Request, batches, prompt_records, requests_for
from egrpo.generation.run import fill, summary

__all__ = [
    "DrawSettings",
    "Generator",
    "Picture",
    "Request",
    "batches",
    "chosen",
    "draw",
    "fill",
    "identity",
    "prompt_records",
    "requests_for",
    "summary",
]
