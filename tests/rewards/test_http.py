"""The HTTP reward against real servers on this machine. Nothing here depends on how long anything takes."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from egrpo.rewards.base import PartialRewardError
from egrpo.rewards.http import HTTPReward, retry_after
from egrpo.types import PromptRecord

REPO = Path(__file__).resolve().parents[2]
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


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Answer]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[dict[str, Any], int], Answer]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reward(server: Server, **settings: Any) -> HTTPReward:
    return HTTPReward(server.url, **{"batch_size": 2, "backoff": 0.001, "timeout": 10.0, **settings})


def failure(of: HTTPReward) -> PartialRewardError:
    with pytest.raises(PartialRewardError) as caught:
        of(IMAGES, RECORDS)
    return caught.value


def test_images_and_records_arrive_and_numbers_come_back_in_order(serve):
    first = threading.Event()

    def last_first(body, count):
        if "prompt 4" in str(body):
            first.set()
        else:
            first.wait(5)  # the last batch is answered before the others
        return right(body, count)

    server = serve(last_first)
    values = reward(server)(IMAGES, RECORDS)
    torch.testing.assert_close(values, BRIGHTNESS)
    assert values.dtype == torch.float32
    bodies = sorted(server.bodies, key=lambda body: body["records"][0]["prompt"])
    assert [r for body in bodies for r in body["records"]] == [record.to_dict() for record in RECORDS]
    assert [len(body["images"]) for body in bodies] == [2, 2, 2]


def test_a_last_batch_may_be_smaller_and_none_is_sent_for_nothing(serve):
    server = serve(right)
    torch.testing.assert_close(reward(server, batch_size=4)(IMAGES, RECORDS), BRIGHTNESS)
    assert sorted(len(body["images"]) for body in server.bodies) == [2, 4]
    assert reward(server)([], []).shape == (0,)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_in_flight_are_bounded(serve, concurrency: int):
    meeting = threading.Barrier(concurrency)

    def meet(body, count):
        meeting.wait(5)  # passes only if that many really are in flight at once
        return right(body, count)

    server = serve(meet)
    torch.testing.assert_close(reward(server, batch_size=1, concurrency=concurrency)(IMAGES, RECORDS), BRIGHTNESS)
    assert server.most_in_flight == concurrency


def test_two_errors_then_an_answer(serve, caplog):
    caplog.set_level(logging.WARNING)
    server = serve(lambda body, count: (500, {"error": "busy"}, {}) if count <= 2 else right(body, count))
    torch.testing.assert_close(reward(server, batch_size=6)(IMAGES, RECORDS), BRIGHTNESS)
    assert len(server.bodies) == 3
    assert caplog.text.count("answered status 500") == 2 and "attempt 3 in" in caplog.text


def test_a_dropped_connection_is_tried_again(serve):
    server = serve(lambda body, count: None if count == 1 else right(body, count))
    torch.testing.assert_close(reward(server, batch_size=6)(IMAGES, RECORDS), BRIGHTNESS)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(serve, caplog, status: int):
    caplog.set_level(logging.WARNING)
    server = serve(lambda body, count: (status, {}, {"Retry-After": "0.2"}) if count == 1 else right(body, count))
    torch.testing.assert_close(reward(server, batch_size=6)(IMAGES, RECORDS), BRIGHTNESS)
    assert len(server.bodies) == 2
    assert "attempt 2 in 0.2 s" in caplog.text  # not the backoff of a millisecond


def test_a_server_that_asks_for_hours_is_down(serve):
    server = serve(lambda body, count: (503, {}, {"Retry-After": "7200"}))
    assert "asks to wait 7200 s" in failure(reward(server, batch_size=6)).reasons[0]
    assert len(server.bodies) == 1


def test_retry_after_as_a_date_or_nonsense():
    def asked(text: str) -> float:
        return retry_after(httpx.Response(503, headers={"Retry-After": text}))

    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert asked("Wed, 21 Oct 2199 07:28:00 GMT") > 1e6
    assert asked("soon") == asked("-3") == asked("") == retry_after(httpx.Response(503)) == 0.0


def test_slower_than_the_timeout(serve):
    def slow(body, count):
        if "prompt 2" in str(body):
            server.released.wait(30)
        return right(body, count)

    server = serve(slow)
    error = failure(reward(server, timeout=0.3, retries=1))
    assert sorted(error.reasons) == [2, 3]
    assert "did not answer (ReadTimeout" in error.reasons[2] and "2 times" in error.reasons[2]
    assert len(server.bodies) == 4  # two good batches, two attempts
    keep = torch.tensor([True, True, False, False, True, True])
    torch.testing.assert_close(error.values[keep], BRIGHTNESS[keep])
    assert error.values[~keep].isnan().all()


def test_a_server_that_dies_keeps_what_was_scored(serve):
    died = threading.Event()

    def dying(body, count):
        if count == 1:
            return right(body, count)
        server.http.shutdown()
        server.http.server_close()  # connection refused from now on
        died.set()
        return None

    server = serve(dying)
    error = failure(reward(server, concurrency=1, retries=2))
    assert died.is_set() and sorted(error.reasons) == [2, 3, 4, 5]
    assert "ConnectError" in error.reasons[4] and server.url in error.reasons[4] and "3 times" in error.reasons[4]
    torch.testing.assert_close(error.values[:2], BRIGHTNESS[:2])


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_other_statuses_are_not_tried_again(serve, status: int):
    server = serve(lambda body, count: (status, {"detail": "no such model"}, {}))
    error = failure(reward(server, batch_size=6))
    assert len(server.bodies) == 1 and sorted(error.reasons) == list(range(6))
    assert f"answered status {status}" in error.reasons[5] and "no such model" in error.reasons[5]


@pytest.mark.parametrize(
    "content, words",
    [
        ({"rewards": [0.5]}, "answered 1 rewards for 6 images"),
        ({"rewards": []}, "answered 0 rewards for 6 images"),
        ({"scores": [0.5] * 6}, 'without a list under "rewards": \'{"scores"'),
        ({"rewards": 0.5}, 'without a list under "rewards"'),
        ([0.5] * 6, 'without a list under "rewards"'),
        (b"<html>It works!</html>", "no JSON: '<html>It works!</html>'"),
        (b"", "no JSON: ''"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_wrong_answer_fails_its_batch_and_says_what_came(serve, content, words: str):
    server = serve(lambda body, count: (200, content, {}))
    error = failure(reward(server, batch_size=6))
    assert len(server.bodies) == 1 and len(error.reasons) == 6
    assert all(words in reason for reason in error.reasons.values()), error.reasons[0]


@pytest.mark.parametrize("came", ["NaN", "null", '"0.5"', "Infinity", "true", "1e39", "1" * 400, "[1.0]"])
def test_a_value_that_is_no_number_fails_its_image_alone(serve, came: str):
    server = serve(lambda body, count: (200, f'{{"rewards": [0, 1, {came}, 3, 4, 5]}}'.encode(), {}))
    error = failure(reward(server, batch_size=6))
    assert list(error.reasons) == [2]
    assert json.dumps(json.loads(came))[:50] in error.reasons[2] and "of image 2 of its request" in error.reasons[2]
    assert error.values[[0, 1, 3, 4, 5]].tolist() == [0, 1, 3, 4, 5] and error.values[2].isnan()


def test_a_record_that_is_no_json_fails_its_batch(serve):
    server = serve(right)
    records = [*RECORDS[:5], PromptRecord("odd", extra={"weight": float("nan")})]
    with pytest.raises(PartialRewardError, match="a record is no JSON") as caught:
        reward(server)(IMAGES, records)
    assert sorted(caught.value.reasons) == [4, 5]


def test_the_token_goes_out_and_nowhere_else(serve, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SCORER_TOKEN", "s3cret-value\n")  # a trailing line break is how files end
    echo = {"you sent": "Bearer s3cret-value"}
    server = serve(lambda body, count: (500 if count == 1 else 403, echo, {}))
    scorer = reward(server, batch_size=6, token_env="SCORER_TOKEN", headers={"X-Lab": "one"})
    error = failure(scorer)
    assert {header["Authorization"] for header in server.headers} == {"Bearer s3cret-value"}
    assert server.headers[0]["X-Lab"] == "one"
    assert "answered status 500" in caplog.text and "Bearer ***" in error.reasons[0]
    assert "s3cret" not in caplog.text + str(error) + str(error.reasons) + repr(scorer)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"url": None}, "set reward.http.reward.url="),
        ({"url": "ftp://host/x"}, "give http://HOST:PORT/PATH"),
        ({"url": "localhost:8000"}, "give http://HOST:PORT/PATH"),
        ({"url": "http://"}, "give http://HOST:PORT/PATH"),
        ({"url": "http://host:port"}, "is no URL"),
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"concurrency": 0}, "concurrency=0: give at least 1"),
        ({"retries": -1}, "retries=-1: give at least 0"),
        ({"timeout": 0}, "timeout=0 must be above 0"),
        ({"backoff": -1}, "backoff=-1 not below"),
        ({"token_env": "NO_SUCH_TOKEN"}, "the environment variable NO_SUCH_TOKEN is not set"),
    ],
)
def test_settings_are_checked_when_built(settings, words: str):
    with pytest.raises(ValueError, match=re.escape(words)):
        HTTPReward(**{"url": "http://127.0.0.1:1", **settings})


def test_secrets_in_the_wrong_place_are_refused_and_not_repeated(monkeypatch):
    with pytest.raises(ValueError, match="token_env") as caught:
        HTTPReward("http://me:s3cret@host/score")
    monkeypatch.setenv("SCORER_TOKEN", "s3cret line\nbreak")
    with pytest.raises(ValueError, match="cannot stand in a header") as second:
        HTTPReward("http://host/score", token_env="SCORER_TOKEN")
    assert "s3cret" not in str(caught.value) + str(second.value)


def test_the_server_of_the_documentation_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "reward_server.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    script = tmp_path / "server.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script), "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            torch.testing.assert_close(HTTPReward(url, batch_size=4)(IMAGES, RECORDS), BRIGHTNESS)
        finally:
            process.kill()
