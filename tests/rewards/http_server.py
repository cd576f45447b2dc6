"""Servers for the tests of the HTTP reward, what they are asked, and what they should answer."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from PIL import Image

from egrpo.rewards.base import PartialRewardError
from egrpo.rewards.http import HTTPReward
from egrpo.types import PromptRecord

GREYS = [0, 51, 102, 153, 204, 255]
IMAGES = [Image.new("RGB", (4, 4), (grey, grey, grey)) for grey in GREYS]
RECORDS = [PromptRecord(f"prompt {i}", nouns=["cat"], extra={"scene": [i]}) for i in range(len(GREYS))]
BRIGHTNESS = torch.tensor(GREYS) / 255

# What a server gives for one request: status, body, headers. None drops the connection.
Answer = tuple[int, Any, dict[str, str]] | None


def brightness(body: dict[str, Any]) -> list[float]:
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
    assert all(image.format == "PNG" and image.mode == "RGB" for image in images)
    return [image.getpixel((0, 0))[0] / 255 for image in images]


def right(body: dict[str, Any], count: int) -> Answer:
    return 200, {"rewards": brightness(body)}, {}


class Server:
    """Answers with `answer(body, number of the request)` and keeps what it saw."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]):
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.released = threading.Event()  # slow answers wait for it, so that none outlives its test
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/score"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            count = len(self.bodies)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.answer(body, count)
        finally:
            with self.lock:
                self.in_flight -= 1
        if answer is None:
            request.close_connection = True
            return
        status, content, headers = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            request.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(data)
        except OSError:  # the client has gone
            pass

    def close(self) -> None:
        self.released.set()
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
        self.http.server_close()


def reward(server: Server, **settings: Any) -> HTTPReward:
    return HTTPReward(server.url, **{"batch_size": 2, "backoff": 0.001, "timeout": 10.0, **settings})


def failure(of: HTTPReward) -> PartialRewardError:
    with pytest.raises(PartialRewardError) as caught:
        of(IMAGES, RECORDS)
    return caught.value
