"""Whose error it is: of several ranks the one with the cause reports it, in the folder of the run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image

from egrpo import distributed, entry
from egrpo.base.errors import ConsequenceError, UserError
from egrpo.launch import prepare_rank
from egrpo.rewards import RewardError
from egrpo.rewards.measuring import measure
from egrpo.training.strategies import compiling
from egrpo.types import PromptRecord
from tests.distributed.ranks import on_ranks

SAID = "Connection reset by peer"


def raised(call: Any) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def gone_peer(folder: str) -> tuple[str, bool, bool]:
    """On rank 0: what torch raises where rank 1 has gone, and whether it is known for that."""
    if distributed.rank() == 1:
        os._exit(0)
    time.sleep(0.5)
    error = raised(lambda: distributed.gather("a value"))
    wrapped = raised(lambda: _wrap(error))
    return str(error), distributed.is_told_elsewhere(error), distributed.is_told_elsewhere(wrapped)


def _wrap(error: Exception) -> None:
    raise KeyError("while it ends") from error


def run_gone_peer(folder: str) -> Any:
    found = gone_peer(folder)
    Path(folder, "found").write_text(json.dumps(found))
    os._exit(0)


def test_the_end_of_a_peer_is_known_by_where_it_was_raised(tmp_path):
    with contextlib.suppress(AssertionError, FileNotFoundError):  # the ranks leave at once, and no results
        on_ranks(run_gone_peer, tmp_path, str(tmp_path))
    text, elsewhere, wrapped = json.loads((tmp_path / "found").read_text())
    assert "onnection" in text and elsewhere and wrapped


def server(images: Any, records: Any) -> Any:
    raise RuntimeError(f"503: {SAID}")


def socket_error(images: Any, records: Any) -> Any:
    raise ConnectionResetError(104, SAID)


@pytest.mark.parametrize("reward", [server, socket_error])
def test_the_same_words_of_a_reward_are_its_own_error(monkeypatch, reward):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    images, records = [Image.new("RGB", (4, 4))], [PromptRecord("a cat")]
    error = raised(lambda: measure("served", reward, images, records))
    assert isinstance(error, RewardError) and SAID in str(error) and not distributed.is_told_elsewhere(error)


def test_an_error_for_the_user_outlives_the_connections(monkeypatch):
    """Lightning's teardown may fail for want of the others after this rank has failed by itself."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    gone = dist.DistNetworkError("Connection closed by peer")
    assert distributed.is_told_elsewhere(gone)
    own = RewardError("reward 'hps' failed")
    gone.__context__ = own
    assert not distributed.is_told_elsewhere(gone) and entry._cause(gone) is own


@pytest.fixture
def store(monkeypatch) -> dist.TCPStore:
    """A launcher's store for two ranks that are threads here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    made = dist.TCPStore("localhost", port, is_master=True)
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": "0"}
    for name, value in {**given, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    return made


def compile_error(words: str) -> Exception:
    def build() -> None:
        with compiling():
            raise (ImportError if "shared" in words else RuntimeError)(words)

    return raised(build)


def test_the_rank_with_the_cause_writes_the_error_whoever_comes_first(store, tmp_path, capfd):
    """One rank fails to compile; the other waits for it, and finds no shared object."""
    cause = compile_error("Error building extension 'fused_adam'")
    follows = compile_error("fused_adam.so: cannot open shared object file")
    assert type(follows) is ConsequenceError and type(cause) is UserError
    distributed.announce(str(tmp_path))

    def end(error: Exception, after: float) -> int:
        time.sleep(after)
        with pytest.raises(SystemExit) as stop:
            entry.end(error, Path("/nowhere"))
        return int(stop.value.code or 0)

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(end, [follows, cause], [0, 1])) == [1, 1]
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(told) == 1 and told[0].endswith(f"(traceback in {tmp_path}/error.txt)")
    assert "building extension" in (tmp_path / "error.txt").read_text()


def test_a_consequence_without_a_cause_is_told_after_all(store, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(entry, "CONSEQUENCE", 0.2)
    distributed.announce(str(tmp_path))
    with pytest.raises(SystemExit):
        entry.end(compile_error("x.so: cannot open shared object file"), None)
    assert "DeepSpeed compiles parts of itself" in capfd.readouterr().err


def test_other_ranks_leave_no_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train", "hydra.run.dir=/run"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda call, *words: ended.append((call, words)))
    prepare_rank()
    (own,) = tmp_path.iterdir()
    assert sys.argv == ["train", f"hydra.run.dir={own}"]
    (own / "train.log").touch()
    call, words = ended.pop()
    call(*words)
    assert list(tmp_path.iterdir()) == []


def broken(images: Any, records: Any) -> Any:
    raise IndexError(f"rank {distributed.rank()}")


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_keeps_its_own_failures(monkeypatch, tmp_path, rank: int):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    images, records = [Image.new("RGB", (4, 4))], [PromptRecord("a cat")]
    error = raised(lambda: measure("hps", broken, images, records, failures=tmp_path))
    own = tmp_path / "hps" / f"rank_{rank}"
    assert str(error).endswith(f"prompts and images are in {own}")
    assert f"IndexError: rank {rank}" in (own / "error.txt").read_text() and (own / "00000.json").is_file()
