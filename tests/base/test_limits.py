"""Calls that do not return in time, and who is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from egrpo.base.limits import OverdueError, within
from egrpo.benchmarks.items import Item
from egrpo.benchmarks.judge import ChatJudge
from egrpo.data import PromptFileError, read_prompts
from egrpo.data.records import LONGEST_PROMPT
from egrpo.generation.requests import prompt_records
from egrpo.rewards import PythonReward, RewardError, measuring
from egrpo.rewards.base import PartialRewardError
from egrpo.rewards.http import HTTPReward
from egrpo.rewards.measuring import measure
from egrpo.types import PromptRecord

IMAGES, RECORDS = [Image.new("RGB", (4, 4))], [PromptRecord("a cat")]


def hangs(images: Any, records: Any) -> Any:
    time.sleep(30)


def lasts(images: Any, records: Any) -> list[float]:
    time.sleep(0.3)
    return [0.5]


def test_a_call_gives_its_result_its_error_and_the_callers_settings():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            assert within(20, lambda x: (x, torch.get_num_threads(), torch.is_grad_enabled()), 3) == (3, 2, False)
    finally:
        torch.set_num_threads(before)
    with pytest.raises(SystemExit):
        within(20, lambda: exec("raise SystemExit(0)"))
    assert within(None, threading.current_thread) is threading.current_thread()


def test_waiting_is_given_up_when_that_is_asked():
    given_up = threading.Event()
    given_up.set()
    start = time.monotonic()
    with pytest.raises(OverdueError):
        within(30, time.sleep, 30, given_up=given_up)
    assert time.monotonic() - start < 20


def test_a_reward_that_hangs_is_named_with_where_it_is(tmp_path):
    reward = PythonReward("tests.base.test_limits.hangs", timeout=0.3)
    with pytest.raises(RewardError) as caught:
        measure("python", reward, IMAGES, RECORDS)
    told = str(caught.value)
    assert (
        "reward 'python' failed on 1 images: OverdueError: tests.base.test_limits.hangs: no answer within 0.3 s" in told
    )
    assert "(it is in hangs, " in told and "reward.python.reward.timeout=SECONDS" in told


def test_a_long_call_is_reported_while_it_lasts(monkeypatch, caplog):
    monkeypatch.setattr(measuring, "WATCH", 0.05)
    with caplog.at_level(logging.WARNING):
        column = measure("python", PythonReward("tests.base.test_limits.lasts", timeout=None), IMAGES, RECORDS)
    assert column.values.tolist() == [0.5]
    told = [record.getMessage() for record in caplog.records]
    assert told and all(line.startswith("reward tests.base.test_limits.lasts has not returned after ") for line in told)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(timeout: float):
    with pytest.raises(ValueError, match=r"reward\.python\.reward\.timeout="):
        PythonReward("tests.base.test_limits.lasts", timeout=timeout)


class Dripping(BaseHTTPRequestHandler):
    """Answers with a header, and then a byte at a time for ever."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.ended.is_set():  # type: ignore[attr-defined]
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def dripping() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        server.ended = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.ended.set()  # type: ignore[attr-defined]
        server.shutdown()


def test_a_server_that_drips_has_a_limit_for_the_whole_request(dripping: str):
    reward = HTTPReward(dripping, timeout=0.5, retries=1, backoff=0)
    start = time.monotonic()
    with pytest.raises(PartialRewardError, match=r"did not answer in full within 0\.5 s, 2 times"):
        reward(IMAGES, RECORDS)
    assert time.monotonic() - start < 15


def test_a_judge_that_drips_has_a_limit_too(dripping: str):
    judge = ChatJudge(f"{dripping}v1", "a-judge", timeout=0.5)

    async def post() -> Any:
        async with httpx.AsyncClient(timeout=judge.timeout) as client:
            return await judge._post(client, b"{}")

    answer, wait, fault = asyncio.run(post())
    assert answer is None and wait == 0 and fault.endswith("did not answer in full within 0.5 s")


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_prompt_line_of_ten_megabytes_is_refused_at_once(tmp_path, name: str):
    path, text = tmp_path / name, "a cat " * 1_700_000
    line = text if name.endswith("txt") else json.dumps({"prompt": text, "nouns": [], "task_type": "non"})
    path.write_text(f"{line}\n")
    start = time.monotonic()
    with pytest.raises(PromptFileError, match=r"line 1: has 10,2\d\d,\d\d\d bytes, and 100,000 are the most") as caught:
        read_prompts(path)
    assert time.monotonic() - start < 5 and len(str(caught.value)) < 500


def test_a_long_prompt_is_refused_wherever_it_comes_from():
    longest = "x" * LONGEST_PROMPT
    assert prompt_records([longest])[0].prompt == longest
    with pytest.raises(ValueError, match="20,001 characters, and 20,000 are the most"):
        prompt_records([f"{longest}x"])
    Item("1", PromptRecord(longest), "color", ("a.png",))
    with pytest.raises(ValueError, match="of color has 20,001 characters, and 20,000 are the most"):
        Item("1", PromptRecord(f"{longest}x"), "color", ("a.png",))
