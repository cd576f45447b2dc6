"""A published prompt file that is fetched, against a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from egrpo.data import PromptDataModule, read_prompts
from egrpo.data.fetch import fetch_prompts
from egrpo.data.reader import PromptFileError

LINE = b'{"prompt": "a cat", "nouns": ["cat"], "task_type": "object"}\n'
DIGEST = hashlib.sha256(LINE).hexdigest()


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(200 if self.path == "/prompts.json" else 404)
            self.end_headers()
            self.wfile.write(LINE)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", Handler
    httpd.shutdown()


def module(path, url, sha256=DIGEST):
    return PromptDataModule(str(path), None, prompts_per_step=1, url=url, published=str(path), sha256=sha256)


def test_a_missing_file_is_fetched_once(server, tmp_path):
    url, handler = server
    path = tmp_path / "made" / "prompts.jsonl"
    assert [r.prompt for r in module(path, f"{url}/prompts.json").train_records] == ["a cat"]
    assert path.read_bytes() == LINE and [p.name for p in path.parent.iterdir()] == ["prompts.jsonl"]
    assert module(path, f"{url}/prompts.json").val_records == read_prompts(path)
    assert handler.asked == 1


@pytest.mark.parametrize(
    "file, digest, fault",
    [("nothing.json", DIGEST, "404"), ("prompts.json", "0" * 64, "not the published file")],
)
def test_what_is_wrong_is_told_and_nothing_is_left(server, tmp_path, file, digest, fault):
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(PromptFileError, match=rf"{fault}.*\n?.*data\.train=FILE"):
        module(path, f"{server[0]}/{file}", digest)
    assert not list(tmp_path.iterdir())


def test_without_a_connection_it_says_what_to_do(server, tmp_path):
    with pytest.raises(PromptFileError, match=r"could not be fetched.*data\.train=FILE"):
        module(tmp_path / "prompts.jsonl", "http://127.0.0.1:1/prompts.json")


def test_a_mistyped_file_of_ones_own_is_never_fetched(server, tmp_path):
    url, handler = server
    with pytest.raises(PromptFileError, match="does not exist"):
        PromptDataModule(
            str(tmp_path / "my_promts.jsonl"),
            None,
            prompts_per_step=1,
            url=f"{url}/prompts.json",
            published=str(tmp_path / "published.jsonl"),
        )
    assert handler.asked == 0 and not list(tmp_path.iterdir())


def test_a_data_module_without_a_file_is_refused():
    with pytest.raises(ValueError, match=r"data\.train=FILE"):
        PromptDataModule(None, None, prompts_per_step=1)


def test_plain_text_is_a_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b'\xef\xbb\xbfa {red} cat\n\n  "two dogs"  \r\nsnow \xe2\x98\x83\n')
    records = read_prompts(file)
    assert [r.prompt for r in records] == ["a {red} cat", '"two dogs"', "snow ☃"]
    assert all(r.task_type == "non" and r.nouns == [] and r.attr_nouns is None for r in records)
    file.write_bytes(b"fine\n\xff\n")
    with pytest.raises(PromptFileError, match="line 2: is not UTF-8"):
        read_prompts(file)
    file.write_text(" \n")
    with pytest.raises(PromptFileError, match="write one prompt a line"):
        read_prompts(file)


def test_eight_ranks_fetch_at_once(server, tmp_path, monkeypatch):
    path, ranks = tmp_path / "prompts.jsonl", 8
    written, replace = threading.Barrier(ranks), type(path).replace

    def together(self, target):
        written.wait(10)  # every rank has written, none has put its file in place
        return replace(self, target)

    monkeypatch.setattr(type(path), "replace", together)
    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(lambda _: fetch_prompts(f"{server[0]}/prompts.json", path, DIGEST), range(ranks)))
    assert path.read_bytes() == LINE and list(tmp_path.iterdir()) == [path]
