"""Images of prompts: which are asked for, drawing them, and a folder that keeps them."""

from egrpo.generation.drawing import DrawSettings, Picture, chosen, circumstances, draw, identity, request_stamp
from egrpo.generation.generator import Generator
from egrpo.generation.requests import Request, batches, prompt_records, requests_for
from egrpo.generation.run import BAR, already_there, device_name, fill, summary

__all__ = [
    "BAR",
    "DrawSettings",
    "Generator",
    "Picture",
    "Request",
    "already_there",
    "batches",
    "chosen",
    "circumstances",
    "device_name",
    "draw",
    "fill",
    "identity",
    "prompt_records",
    "request_stamp",
    "requests_for",
    "summary",
]
