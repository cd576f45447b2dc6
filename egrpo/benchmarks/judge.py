"""Asks a vision model about images, through any server of OpenAI's chat completions, many at a time.

The exchange, one POST to `{base_url}/chat/completions` for each image:

    request   {"model": ..., "messages": [{"role": "user", "content": [{"type": "text", "text": ...},
               {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]}], "temperature": 0, ...}
    answer    200 {"choices": [{"message": {"content": "..."}}], "usage": {"prompt_tokens": n, "completion_tokens": n}}

Every usable answer is kept in a file named by the hash of all that decides it, the server's address among it, before
the next question is asked: what was answered once is never paid for twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from egrpo.base.errors import UserError
from egrpo.benchmarks.answers import Answer, keep_answer, kept_answer
from egrpo.benchmarks.items import checked_image
from egrpo.benchmarks.rubric import BadAnswerError, shown
from egrpo.rewards.http import ASKED_AGAIN, LONGEST_BACKOFF, LONGEST_RETRY_AFTER, SLACK, retry_after
from egrpo.servers import checked_url, secret

MILLION = 1_000_000
TOLD = 5  # failed questions that a message lists

OWN_FIELDS = {"model", "messages", "stream", "n"}
CUT = {  # values of finish_reason under which an answer is not whole
    "length": "it is longer than the server or benchmark.judge.max_tokens allows; raise that",
    "content_filter": "the server's filter took it away",
}

log = logging.getLogger(__name__)
Scores = TypeVar("Scores")


@dataclass(frozen=True)
class Question:
    """One image to judge: `key` names it in messages, `file` is relative to the exported folder."""

    key: str
    text: str
    file: str


@dataclass(frozen=True)
class Bill:
    """What judging took. Tokens and cost cover kept answers too, paid once; cost is None without prices."""

    asked: int
    kept: int  # answers that were there already
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class _FailedError(Exception):
    """A question without a usable answer, after all attempts."""


class _RefusedError(_FailedError):
    """The server will refuse every other question too."""


class ChatJudge:
    """A client of a vision model.

    Args:
        base_url: `http://HOST:PORT/v1` or `https://HOST/v1`, without user or password.
        model: Its name there.
        key_env: Name of the environment variable with the API key, which goes out as "Authorization: Bearer ..." and is
            never logged or saved; None = the server needs none.
        concurrency: Questions in flight at most.
        timeout: Seconds for a whole request, from connecting to the last byte of the answer.
        retries: Further attempts after connection errors, timeouts, 408, 425, 429, 5xx and answers that cannot be used.
        backoff: Seconds before the first of them, doubled each time, with jitter of half to one and a half.
        temperature, max_tokens, max_completion_tokens: Of the answer; None leaves a field out of the request.
        extra_body: Further fields of the request, as the server documents them; a field that is None is left out.
        prompt_price, completion_price: Of a million tokens, in any currency; None = cost is not told.

    Raises:
        UserError: a setting is missing or out of range, or the environment variable is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        temperature: float | None = 0.0,
        max_tokens: int | None = 2000,
        max_completion_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        prompt_price: float | None = None,
        completion_price: float | None = None,
    ):
        self.url, self.model = _chat_url(base_url), model
        if not model:
            raise UserError("the judge has no model: set benchmark.judge.model=NAME, as the server calls it")
        limits = [limit for limit in (max_tokens, max_completion_tokens) if limit is not None]
        if min(concurrency, *limits) < 1 or retries < 0 or timeout <= 0 or backoff < 0:
            raise UserError(
                f"benchmark.judge: concurrency={concurrency}, max_tokens={max_tokens} and "
                f"max_completion_tokens={max_completion_tokens} must be at least 1, "
                f"retries={retries} and backoff={backoff} not below 0, timeout={timeout} above 0"
            )
        if own := sorted(OWN_FIELDS & set(extra_body or {})):
            raise UserError(f"benchmark.judge.extra_body: {', '.join(own)} cannot be set there; leave it out")
        if (prompt_price is None) != (completion_price is None):
            raise UserError("benchmark.judge: give both prompt_price and completion_price, or neither")
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        settings = {"temperature": temperature, "max_tokens": max_tokens}
        settings |= {"max_completion_tokens": max_completion_tokens, **(extra_body or {})}
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.prices = None if prompt_price is None or completion_price is None else (prompt_price, completion_price)
        self._key = secret(key_env, "benchmark.judge.key_env")
        self._jitter = random.Random()  # an own one: the global stream belongs to the experiment

    def ask(
        self, folder: Path, questions: Sequence[Question], read: Callable[[str], Scores], cache: Path
    ) -> tuple[dict[str, Scores], Bill]:
        """Asks what has no kept answer yet.

        Args:
            folder: Where the questions' files lie.
            questions: With keys that differ.
            read: Makes scores of an answer's text, or raises a BadAnswerError.
            cache: Folder for answers.

        Returns:
            Scores by key, in the order of the questions, and the bill.

        Raises:
            UserError: some questions got no usable answer. All others are kept, and asking again asks only for these.
        """
        cache.mkdir(parents=True, exist_ok=True)
        return asyncio.run(self._ask_all(folder, questions, read, cache))

    async def _ask_all(self, folder, questions, read, cache):
        places, stop = asyncio.Semaphore(self.concurrency), asyncio.Event()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits) as client:

            async def one(question: Question) -> tuple[Any, Answer, bool] | _FailedError:
                async with places:
                    try:
                        return await self._one(client, folder, question, read, cache, stop)
                    except _FailedError as error:
                        if isinstance(error, _RefusedError):
                            stop.set()
                        return error

            outcomes = await asyncio.gather(*map(one, questions))
        done = {q.key: o for q, o in zip(questions, outcomes) if not isinstance(o, _FailedError)}
        bill = self._bill(list(done.values()))
        log.info("%s", self.told(bill))
        failed = [(q.key, o) for q, o in zip(questions, outcomes) if isinstance(o, _FailedError)]
        if failed:
            raise UserError(self._report(failed, len(questions)))
        return {key: scores for key, (scores, _, _) in done.items()}, bill

    async def _one(self, client, folder, question, read, cache, stop):
        """Scores, the answer they are read from, and whether it was kept."""
        body = self._body(question.text, folder / question.file)
        kept = cache / f"{hashlib.sha256(f'POST {self.url} '.encode() + body).hexdigest()}.json"
        if (answer := kept_answer(kept)) is not None:
            try:
                return read(answer.content), answer, True
            except BadAnswerError:
                log.warning("%s holds an answer that is no longer usable; it is asked again", kept)
        told = "was not asked"
        for attempt in range(self.retries + 1):
            if stop.is_set():
                raise _FailedError(told)
            wait = min(self.backoff * 2**attempt, LONGEST_BACKOFF) * self._jitter.uniform(0.5, 1.5)
            try:
                answer, asked, told = await self._post(client, body)
                if answer is not None:
                    scores = read(answer.content)
                    keep_answer(kept, answer)
                    return scores, answer, False
                wait = max(wait, asked)
            except BadAnswerError as error:
                told = str(error)
            if attempt < self.retries:
                log.warning("%s: %s; attempt %d in %.1f s", question.key, self._hidden(told), attempt + 2, wait)
                await asyncio.sleep(wait)
        raise _FailedError(f"{told}, {self.retries + 1} times" if self.retries else told)

    def _body(self, text: str, path: Path) -> bytes:
        data, fault = checked_image(path)
        if fault:
            raise _FailedError(f"the image {path} {fault}")
        image = base64.b64encode(data).decode("ascii")
        content = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        ]
        question = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        return json.dumps({**self.settings, **question}, sort_keys=True).encode()

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> tuple[Answer | None, float, str]:
        """An answer, or None with the seconds that the server asks to wait and what went wrong."""
        try:
            async with asyncio.timeout(self.timeout + SLACK):  # httpx limits each wait, and a server may drip
                response = await client.post(self.url, content=body, headers={"Content-Type": "application/json"})
        except TimeoutError:
            return None, 0.0, f"{self.url} did not answer in full within {self.timeout:g} s"
        except httpx.TransportError as error:
            return None, 0.0, f"{self.url} did not answer ({type(error).__name__}: {error})"
        except httpx.HTTPError as error:
            return None, 0.0, f"{self.url} answered what cannot be read ({type(error).__name__}: {error})"
        status, text = response.status_code, shown(response.text)
        if status != 200:
            fault, asked = f"{self.url} answered status {status}: {text}", retry_after(response)
            if status in (401, 403, 404):
                raise _RefusedError(fault)
            if status not in ASKED_AGAIN and status < 500:
                raise _FailedError(fault)
            if asked > LONGEST_RETRY_AFTER:
                raise _RefusedError(f"{fault}, and asks to wait {asked:.0f} s")
            return None, asked, fault
        try:
            row = response.json()
            choice, usage = row["choices"][0], row.get("usage") or {}
            content, finish = content_of(choice["message"]["content"]), choice.get("finish_reason")
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            return None, 0.0, f"{self.url} answered no chat completion ({type(error).__name__}: {error}): {text}"
        if finish in CUT:
            return None, 0.0, f"{self.url} ended its answer early (finish_reason {finish!r}: {CUT[finish]}): {text}"
        return Answer(content, *tokens), 0.0, ""

    def _bill(self, done: Sequence[tuple[Any, Answer, bool]]) -> Bill:
        read, written = (sum(getattr(a, n) for _, a, _ in done) for n in ("prompt_tokens", "completion_tokens"))
        kept = sum(was_kept for _, _, was_kept in done)
        cost = None if self.prices is None else (read * self.prices[0] + written * self.prices[1]) / MILLION
        return Bill(len(done) - kept, kept, read, written, cost)

    def told(self, bill: Bill) -> str:
        """The bill in a sentence."""
        cost = "no prices given" if bill.cost is None else f"cost {bill.cost:.4f}"
        return (
            f"judge {self.model}: {bill.asked} images asked, {bill.kept} answers kept from before; "
            f"{bill.prompt_tokens} prompt and {bill.completion_tokens} completion tokens in all, {cost}"
        )

    def _report(self, failed: Sequence[tuple[str, _FailedError]], count: int) -> str:
        refused = [(key, error) for key, error in failed if isinstance(error, _RefusedError)]
        lines = [f"  {key}: {self._hidden(str(error))}" for key, error in [*refused, *failed][:TOLD]]
        return (
            f"the judge gave no usable answer for {len(failed)} of {count} images; all other answers are kept, so mend "
            f"what is told below and run again:\n" + "\n".join(dict.fromkeys(lines))
        )

    def _hidden(self, text: str) -> str:
        """`text` without the key, which a server may have echoed."""
        return text.replace(self._key, "***") if self._key else text


def content_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts, of which those of the type text are read.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(content, list):
        texts = [part.get("text") for part in content if part.get("type") in ("text", "output_text")]
        content = "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise TypeError("its content is no text")
    return content


def _chat_url(base_url: str) -> str:
    if not base_url:
        raise UserError("the judge has no server: set benchmark.judge.base_url=http://HOST:PORT/v1")
    url = checked_url(base_url, "benchmark.judge.base_url", "benchmark.judge.key_env", "/v1")
    return f"{url.rstrip('/')}/chat/completions"
