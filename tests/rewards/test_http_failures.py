"""The HTTP reward when servers fail: what is tried again, and what a batch or an image loses.

Real servers on this machine; nothing here depends on how long anything takes.
"""

from __future__ import annotations

import json
import logging
import threading

import httpx
import pytest
import torch

from egrpo.rewards.base import PartialRewardError
from egrpo.rewards.http import retry_after
from egrpo.types import PromptRecord
from tests.rewards.http_server import BRIGHTNESS, IMAGES, RECORDS, failure, reward, right


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


@pytest.mark.parametrize("status", [408, 425, 429, 503])
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
