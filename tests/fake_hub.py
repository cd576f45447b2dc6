"""A server that speaks enough of the Hugging Face Hub's protocol for its own client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories as mappings of paths to content, and what was asked for."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    spoiled: dict[str, bytes] = field(default_factory=dict)  # path -> what comes instead of its content
    refused: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)  # path or repo -> status, headers
    fetched: list[str] = field(default_factory=list)  # paths of whole files, in order
    asked: int = 0

    def info(self, repo: str) -> dict[str, Any]:
        siblings = []
        for path, content in self.repos[repo].items():
            row: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": "0" * 40}
            if large(path):
                row["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(row)
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        path = unquote(urlsplit(request.path).path).strip("/")
        api = re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
        file = re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = api[1] if api else file[3] if file else ""
        if name in self.refused:
            status, headers = self.refused[name]
            reply(request, status, b"{}", headers)
        elif api and api[1] in self.repos:
            reply(request, 200, json.dumps(self.info(api[1])).encode(), {"Content-Type": "application/json"})
        elif file and file[3] in self.repos.get(file[1], {}):
            content = self.repos[file[1]][file[3]]
            etag = hashlib.sha256(content).hexdigest() if large(file[3]) else hashlib.sha1(content).hexdigest()
            if request.command == "GET":
                self.fetched.append(file[3])
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            reply(request, 200, self.spoiled.get(file[3], content), headers)
        else:
            reply(request, 404, b"{}", {"X-Error-Code": "EntryNotFound" if file else "RepoNotFound"})


def large(path: str) -> bool:
    return Path(path).suffix in (".pt", ".pth", ".bin", ".safetensors")


def reply(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in {"Content-Length": str(len(content)), **headers}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


@contextmanager
def serving(hub: Hub) -> Iterator[int]:
    """Runs `hub` on this machine for the length of a `with` block; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Makes the client of this process, which reads its environment once, talk to that port."""
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
