"""A reward that another process serves over HTTP.

The exchange, one POST for each batch of M images (docs/reward_server.md has an example server):

    request   {"images": [base64 of a PNG in RGB, ...M], "records": [{"prompt": "...", ...}, ...M]}
    answer    200 {"rewards": [0.5, ...M]}            finite numbers, higher is better, in the order of the images

Records have the keys of the prompt file (`egrpo.types.PromptRecord.to_dict`). Status 408, 425, 429 and 5xx mean "try
again" (`Retry-After` is honoured), any other status but 200 "this will never work".
"""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Event
from typing import Any

import httpx
import torch
from PIL import Image
from torch import Tensor

from egrpo.base.errors import UserError
from egrpo.base.limits import OverdueError, within
from egrpo.rewards.base import PartialRewardError
from egrpo.servers import checked_url, secret
from egrpo.types import PromptRecord

ASKED_AGAIN = (408, 425, 429)  # below 500: took too long, came too early, too many
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_RETRY_AFTER = 300.0  # seconds; a server that asks for more is taken to be down
SLACK = 1.0  # seconds after which a request is given up that no single wait has ended
LARGEST = torch.finfo(torch.float32).max
SHOWN = 120  # characters of an answer in an error

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # one line for each request would drown the run's log


class RequestFailedError(Exception):
    """A batch got no usable answer; the message says why."""


class HTTPReward:
    """Sends images and records to `url` and reads numbers back.

    Args:
        url: `http://` or `https://`, without user or password.
        batch_size: Images a request.
        timeout: Seconds for a whole request, from connecting to the last byte of the answer.
        retries: Further attempts after connection errors, timeouts, 408, 425, 429 and 5xx.
        backoff: Seconds before the first of them, doubled each time, with jitter of half to one and a half.
        concurrency: Requests in flight at most.
        headers: Plain headers. They are saved with the run's configuration: secrets belong into `token_env`.
        token_env: Name of an environment variable; its value goes out as "Authorization: Bearer ..." and is never
            logged.

    Raises:
        UserError: a setting is missing or out of range, or the environment variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 8,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        concurrency: int = 4,
        headers: Mapping[str, str] | None = None,
        token_env: str | None = None,
    ):
        self.url = _server_url(url)
        at_least = {"batch_size": (batch_size, 1), "concurrency": (concurrency, 1), "retries": (retries, 0)}
        for name, (value, least) in at_least.items():
            if value < least:
                raise UserError(f"reward.http.reward.{name}={value}: give at least {least}")
        if timeout <= 0 or backoff < 0:
            raise UserError(f"reward.http.reward: timeout={timeout} must be above 0, backoff={backoff} not below")
        self.batch_size, self.concurrency = batch_size, concurrency
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self._token = secret(token_env, "reward.http.reward.token_env")
        self._headers = httpx.Headers({**(headers or {}), "Content-Type": "application/json"})
        if self._token:
            self._headers["Authorization"] = f"Bearer {self._token}"
        self._jitter = random.Random()  # an own one: the global stream belongs to the experiment

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Tensor:
        """N images and their N records -> [N] float32.

        Raises:
            PartialRewardError: some batches or images got no number, after all attempts; it holds the others.
        """
        values, reasons = torch.full((len(images),), float("nan"), dtype=torch.float32), dict[int, str]()
        starts = range(0, len(images), self.batch_size)
        stop = Event()

        def ask(start: int) -> list[Any] | RequestFailedError:
            rows = slice(start, start + self.batch_size)
            try:
                return self._ask(client, images[rows], records[rows], stop)
            except RequestFailedError as error:
                return error

        limits = httpx.Limits(max_connections=self.concurrency)
        with (
            httpx.Client(headers=self._headers, timeout=self.timeout, limits=limits) as client,
            ThreadPoolExecutor(self.concurrency, thread_name_prefix="reward") as pool,
        ):
            try:
                answers = list(pool.map(ask, starts))
            except BaseException:  # an interrupt too: do not sit out the waiting attempts
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for start, answer in zip(starts, answers):
            for i in range(start, min(start + self.batch_size, len(images))):
                value: Any = answer[i - start] if isinstance(answer, list) else None
                fault = _fault(value, i - start) if isinstance(answer, list) else str(answer)
                if fault:
                    reasons[i] = self._hidden(f"{self.url} {fault}")
                else:
                    values[i] = float(value)
        if reasons:
            raise PartialRewardError(values, reasons)
        return values

    def _ask(
        self, client: httpx.Client, images: list[Image.Image], records: list[PromptRecord], stop: Event
    ) -> list[Any]:
        """One batch's list of answers, as many as there are images, each still to be checked."""
        content = {"images": [encoded(image) for image in images], "records": [r.to_dict() for r in records]}
        try:
            body = json.dumps(content, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise RequestFailedError(f"got no request: a record is no JSON ({error})") from error
        response = self._post(client, body, stop)
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise RequestFailedError(f"answered 200 with no JSON: {_shown(response.text)}") from error
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            raise RequestFailedError(f'answered 200 without a list under "rewards": {_shown(response.text)}')
        if len(rewards) != len(images):
            raise RequestFailedError(f"answered {len(rewards)} rewards for {len(images)} images")
        return rewards

    def _post(self, client: httpx.Client, body: bytes, stop: Event) -> httpx.Response:
        """The first answer with status 200, after as many attempts as it takes and is allowed."""
        for attempt in range(self.retries + 1):
            asked = 0.0
            try:
                response = within(self.timeout + SLACK, partial(client.post, self.url, content=body), given_up=stop)
            except OverdueError:
                fault = f"did not answer in full within {self.timeout:g} s"
            except httpx.TransportError as error:
                fault = f"did not answer ({type(error).__name__}: {error})"
            except httpx.HTTPError as error:
                raise RequestFailedError(f"answered what cannot be read ({type(error).__name__}: {error})") from error
            else:
                if response.status_code == 200:
                    return response
                fault = f"answered status {response.status_code}: {_shown(response.text)}"
                if response.status_code not in ASKED_AGAIN and response.status_code < 500:
                    raise RequestFailedError(fault)
                asked = retry_after(response)
            if asked > LONGEST_RETRY_AFTER:
                raise RequestFailedError(f"{fault}, and asks to wait {asked:.0f} s")
            if attempt == self.retries or stop.is_set():
                break
            wait = min(self.backoff * 2**attempt, LONGEST_BACKOFF) * self._jitter.uniform(0.5, 1.5)
            wait = max(wait, asked)
            log.warning("%s", self._hidden(f"{self.url} {fault}; attempt {attempt + 2} in {wait:.1f} s"))
            stop.wait(wait)
        raise RequestFailedError(f"{fault}, {self.retries + 1} times" if self.retries else fault)

    def _hidden(self, text: str) -> str:
        """`text` without the secret, which a server may have echoed."""
        return text.replace(self._token, "***") if self._token else text


def encoded(image: Image.Image) -> str:
    """Base64 of the image as an RGB PNG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def retry_after(response: httpx.Response) -> float:
    """Seconds of the header `Retry-After`, given as a number or as a date; 0 where there is none."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text)) if text else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _server_url(url: str) -> str:
    if not url:
        raise UserError("the http reward has no server: set reward.http.reward.url=http://HOST:PORT/PATH")
    return checked_url(url, "reward.http.reward.url", "reward.http.reward.token_env", "/PATH")


def _fault(value: Any, position: int) -> str:
    """What is wrong with one answered reward, if anything; so are JSON's true and a number beyond float32."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return ""
    return f"answered {_shown(json.dumps(value))} as the reward of image {position} of its request"


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
