"""The HTTP reward against real servers on this machine: requests, settings, secrets, the documented example.

Nothing here depends on how long anything takes.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from egrpo.rewards.http import HTTPReward
from tests.rewards.http_server import BRIGHTNESS, IMAGES, RECORDS, failure, reward, right

REPO = Path(__file__).resolve().parents[2]


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


def test_values_are_float32_whatever_the_default_type(serve):
    torch.set_default_dtype(torch.bfloat16)
    try:
        values = reward(serve(right))(IMAGES, RECORDS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, BRIGHTNESS)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_in_flight_are_bounded(serve, concurrency: int):
    meeting = threading.Barrier(concurrency)

    def meet(body, count):
        meeting.wait(5)  # passes only if that many really are in flight at once
        return right(body, count)

    server = serve(meet)
    torch.testing.assert_close(reward(server, batch_size=1, concurrency=concurrency)(IMAGES, RECORDS), BRIGHTNESS)
    assert server.most_in_flight == concurrency


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
