"""The judge against real servers on this machine that err, stall and answer badly. Nothing here depends on speed."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from egrpo.benchmarks import ChatJudge
from tests.benchmarks.pieces import benchmark, fill, picture, wise_prompts
from tests.rewards.http_server import Server

NUMBERS = [1, 2, 3, 401, 568, 701, 801, 901]
GOOD = '{"consistency": 2, "realism": 1, "aesthetic_quality": 0}'  # WiScore 0.8


def completion(content: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    return {"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage}


def number_in(body: dict[str, Any]) -> int:
    """The prompt_id that a request asks about."""
    text = body["messages"][0]["content"][0]["text"]
    return int(text.split("what number ")[1].split()[0])


def good(body, count):
    return 200, completion(GOOD), {}


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.close()


@pytest.fixture
def wise(tmp_path):
    prompts = wise_prompts(tmp_path / "prompts", *NUMBERS)

    def make(server: Server, *overrides: str):
        of = benchmark(
            "wise",
            f"benchmark.prompts={prompts}",
            f"benchmark.judge.base_url={server.url.rsplit('/', 1)[0]}/v1",
            "benchmark.judge.model=a-judge",
            "benchmark.judge.backoff=0.001",
            "benchmark.judge.timeout=20",
            *[f"benchmark.judge.{override}" for override in overrides],
        )
        fill(tmp_path / "out", of)
        return of

    return make


def kept(tmp_path) -> int:
    return len(list((tmp_path / "out" / "egrpo" / "judge").glob("*.json")))


def test_every_image_is_asked_once_with_its_prompt_and_scored(serve, wise, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    server = serve(good)
    of = wise(server, "prompt_price=2.5", "completion_price=10")
    scores = of.score(tmp_path / "out")
    assert scores.overall[0].score == pytest.approx(0.8) and scores.overall[0].method == "a-judge"
    assert "another judge" in scores.overall[0].stand_in
    assert sorted(map(number_in, server.bodies)) == NUMBERS
    for body in server.bodies:
        text, image = body["messages"][0]["content"]
        number = number_in(body)
        assert f"what number {number} looks like" in text["text"] and f"shows: number {number}" in text["text"]
        head, data = image["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        item = next(item for item in of.items() if item.key == str(number))
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert shown.getpixel((0, 0)) == picture(item, 0).getpixel((0, 0))
        assert body["model"] == "a-judge" and body["temperature"] == 0
    bill = scores.notes["judge"]
    assert bill == {
        "asked": 8, "kept": 0, "prompt_tokens": 8000, "completion_tokens": 80,
        "cost": pytest.approx((8000 * 2.5 + 80 * 10) / 1e6),
    }  # fmt: skip
    assert "8 images asked" in caplog.text and "cost 0.0208" in caplog.text


def test_answers_are_kept_by_content(serve, wise, tmp_path):
    server = serve(good)
    of = wise(server)
    first = of.score(tmp_path / "out")
    second = of.score(tmp_path / "out")
    assert len(server.bodies) == 8 and second.results == first.results
    assert second.notes["judge"]["kept"] == 8 and second.notes["judge"]["cost"] is None
    other = Image.new("RGB", (8, 8), "white")
    of.write_image(tmp_path / "out", of.items()[0], 0, other)
    of.score(tmp_path / "out")
    assert len(server.bodies) == 9  # the image that is another one
    wise(server, "temperature=0.5").score(tmp_path / "out")
    assert len(server.bodies) == 17
    # An answer of which half was written is asked again.
    path = next((tmp_path / "out" / "egrpo" / "judge").glob("*.json"))
    path.write_text(path.read_text()[:10])
    of.score(tmp_path / "out")
    wise(server, "temperature=0.5").score(tmp_path / "out")
    assert len(server.bodies) == 18


def test_errors_bad_answers_and_dropped_connections_are_tried_again(serve, wise, tmp_path):
    seen: dict[int, int] = {}
    lock = threading.Lock()
    faults = {
        1: (500, {"error": "boom"}, {}),
        2: (429, {"error": "slow down"}, {"Retry-After": "0"}),
        3: None,  # the connection is dropped
        401: (200, completion("I would rather not say."), {}),
        568: (200, completion('{"consistency": 7, "realism": 1, "aesthetic_quality": 0}'), {}),
        701: (200, b"<html>", {}),
        801: (200, {"choices": []}, {}),
        901: (200, completion(None), {}),
    }

    def answer(body, count):
        number = number_in(body)
        with lock:
            seen[number] = seen.get(number, 0) + 1
        return faults[number] if seen[number] == 1 else good(body, count)

    scores = wise(serve(answer)).score(tmp_path / "out")
    assert scores.overall[0].score == pytest.approx(0.8)
    assert seen == dict.fromkeys(NUMBERS, 2)
    assert kept(tmp_path) == 8  # no bad answer among them


@pytest.mark.parametrize(
    "content, text",
    [
        ('{"consistency": 3, "realism": 0, "aesthetic_quality": 0}', "consistency is 3, outside 0..2"),
        ('{"consistency": 1}', "realism is missing"),
        ("no", "no JSON object: 'no'"),
    ],
)
def test_answers_that_stay_bad_are_named_and_all_others_kept(content, text, serve, wise, tmp_path):
    bad = {"on": True}

    def answer(body, count):
        return (200, completion(content), {}) if bad["on"] and number_in(body) in (2, 401) else good(body, count)

    server = serve(answer)
    of = wise(server, "retries=1")
    with pytest.raises(ValueError, match=r"no usable answer for 2 of 8 images; all other answers are kept") as caught:
        of.score(tmp_path / "out")
    assert f"2: the judge answered {content!r}"[:20] in str(caught.value)
    assert text in str(caught.value) and ", 2 times" in str(caught.value)
    assert kept(tmp_path) == 6
    bad["on"] = False
    asked = len(server.bodies)
    assert of.score(tmp_path / "out").overall[0].score == pytest.approx(0.8)
    assert len(server.bodies) - asked == 2  # resumed


def test_a_stalling_server_times_out(serve, wise, tmp_path):
    stalls = {"on": False}

    def answer(body, count):
        if number_in(body) != 3:
            return good(body, count)
        if stalls["on"]:
            server.released.wait(30)
        return 500, {}, {}

    server = serve(answer)
    with pytest.raises(ValueError, match=r"1 of 8 images"):
        wise(server, "retries=0").score(tmp_path / "out")
    assert kept(tmp_path) == 7
    stalls["on"] = True  # only this one is asked now, so that nothing else meets the short limit
    with pytest.raises(ValueError, match=r"1 of 8 images[\s\S]*3: .* did not answer \(\w+Timeout"):
        wise(server, "timeout=0.3", "retries=0").score(tmp_path / "out")


def test_a_server_that_is_not_there(serve, wise, tmp_path):
    server = serve(good)
    of = wise(server, "retries=1")
    server.close()
    with pytest.raises(ValueError, match=r"8 of 8 images[\s\S]*did not answer \(ConnectError"):
        of.score(tmp_path / "out")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_the_asking(status, serve, wise, tmp_path):
    server = serve(lambda body, count: (status, {"error": "no"}, {}))
    with pytest.raises(ValueError, match=f"answered status {status}"):
        wise(server, "concurrency=1").score(tmp_path / "out")
    assert len(server.bodies) == 1


def test_a_fault_of_one_request_leaves_the_others_alone(serve, wise, tmp_path):
    server = serve(lambda body, count: (400, {"error": "too big"}, {}) if number_in(body) == 3 else good(body, count))
    with pytest.raises(ValueError, match=r"1 of 8 images[\s\S]*3: .*status 400: .*too big"):
        wise(server).score(tmp_path / "out")
    assert len(server.bodies) == 8 and kept(tmp_path) == 7


def test_no_more_requests_are_in_flight_than_allowed(serve, wise, tmp_path):
    gate = threading.Barrier(3, timeout=20)

    def answer(body, count):
        if count <= 3:
            gate.wait()  # three are in flight at once
        return good(body, count)

    server = serve(answer)
    wise(server, "concurrency=3").score(tmp_path / "out")
    assert server.most_in_flight == 3


def test_the_key_goes_out_and_is_never_told(serve, wise, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("A_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)

    def answer(body, count):
        return (500, {"error": "your key sk-secret is odd"}, {}) if number_in(body) == 3 else good(body, count)

    server = serve(answer)
    with pytest.raises(ValueError, match="1 of 8") as caught:
        wise(server, "key_env=A_KEY", "retries=1").score(tmp_path / "out")
    assert all(headers["Authorization"] == "Bearer sk-secret" for headers in server.headers)
    assert "sk-secret" not in str(caught.value) and "***" in str(caught.value)
    assert "sk-secret" not in caplog.text
    assert not any("sk-secret" in p.read_text(errors="ignore") for p in (tmp_path / "out").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "settings, text",
    [
        (["base_url=null"], "benchmark.judge.base_url="),
        (["base_url=ftp://x"], "give http://HOST:PORT/v1"),
        (["base_url=http://user:pw@host/v1"], "benchmark.judge.key_env="),
        (["model=null"], "benchmark.judge.model="),
        (["key_env=NOT_SET_ANYWHERE"], "the environment variable NOT_SET_ANYWHERE is not set"),
        (["concurrency=0"], "concurrency=0"),
        (["timeout=0"], "timeout=0 above 0"),
        (["prompt_price=1"], "give both prompt_price and completion_price"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_asked(settings, text, serve, wise, tmp_path):
    server = serve(good)
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        wise(server, *settings).score(tmp_path / "out")
    assert "pw" not in str(caught.value) and not server.bodies


def test_an_unscored_export_needs_no_judge(wise, serve, tmp_path):
    of = wise(serve(good), "base_url=null", "model=null")
    assert not of.check(tmp_path / "out")
    line = json.dumps({"prompt_id": 1, "consistency": 2, "realism": 2, "aesthetic_quality": 2})
    (tmp_path / "out" / "a_scores.jsonl").write_text("\n".join(line.replace(": 1,", f": {n},") for n in NUMBERS))
    assert of.read_back(tmp_path / "out").overall[0].score == pytest.approx(1.0)


def test_an_answer_that_is_cut_is_neither_scored_nor_kept(serve, wise, tmp_path):
    def cut(body, count):
        answer = completion(GOOD)
        answer["choices"][0]["finish_reason"] = "length" if number_in(body) == 3 else "stop"
        return 200, answer, {}

    server = serve(cut)
    with pytest.raises(ValueError, match=r"for 1 of 8 images.*\n  3: .*finish_reason 'length'.*max_tokens"):
        wise(server, "retries=1").score(tmp_path / "out")
    assert kept(tmp_path) == 7


def test_content_as_a_list_of_parts_is_read(serve, wise, tmp_path):
    parts = [
        {"type": "thinking", "thinking": "{"},
        *({"type": "text", "text": text} for text in (GOOD[:10], GOOD[10:])),
    ]
    server = serve(lambda body, count: (200, completion(parts), {}))
    assert wise(server).score(tmp_path / "out").overall[0].score == pytest.approx(0.8)


def test_kept_answers_belong_to_a_server(serve, wise, tmp_path):
    first, second = serve(good), serve(good)
    wise(first).score(tmp_path / "out")
    wise(first).score(tmp_path / "out")
    assert len(first.bodies) == 8
    wise(second).score(tmp_path / "out")
    assert len(second.bodies) == 8 and kept(tmp_path) == 16


def test_fields_of_the_request_are_the_models_to_choose(serve, wise, tmp_path):
    server = serve(good)
    settings = ("temperature=null", "max_tokens=null", "max_completion_tokens=4000")
    wise(server, *settings).score(tmp_path / "out")
    assert server.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}
    assert server.bodies[0]["max_completion_tokens"] == 4000
    judge = ChatJudge(server.url, "m", extra_body={"reasoning_effort": "low", "temperature": None})
    assert judge.settings == {"max_tokens": 2000, "reasoning_effort": "low"}
    with pytest.raises(ValueError, match="extra_body: messages cannot be set there"):
        ChatJudge(server.url, "m", extra_body={"messages": []})


@pytest.mark.parametrize("status", [408, 425])
def test_a_question_that_came_too_early_or_took_too_long_is_asked_again(status, serve, wise, tmp_path):
    server = serve(lambda body, count: (status, {}, {}) if count <= 3 else good(body, count))
    assert wise(server, "concurrency=1").score(tmp_path / "out").overall[0].score == pytest.approx(0.8)
    assert len(server.bodies) == 11
