"""Several processes: the same files, and one sentence where one of them fails."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from egrpo.analysis import shards
from egrpo.analysis.shards import ShardError, _follow, _portable, number_of_processes
from egrpo.rewards import RewardError
from egrpo.rewards.base import PartialRewardError
from egrpo.types import PromptRecord
from tests.analysis.studies import contents, draw

BROKEN = "{_target_: egrpo.rewards.WeightedReward, reward: {_target_: tests.analysis.test_shards.Broken}}"


class Broken:
    """Fails for every image."""

    def __call__(self, images: list[Image.Image], records: list[PromptRecord]) -> Any:
        raise KeyError("no such thing")


class Mailbox:
    """What processes say, without processes."""

    def __init__(self, *news: Any) -> None:
        self.news = list(news)

    def get(self, timeout: float) -> Any:
        if not self.news:
            raise shards.queue.Empty
        return self.news.pop(0)

    def empty(self) -> bool:
        return not self.news


class Bar:
    """Counts."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, images: int) -> None:
        self.n += images


def workers(*exitcodes: int | None) -> list[Any]:
    return [SimpleNamespace(name=f"shard {i}", exitcode=code) for i, code in enumerate(exitcodes)]


def test_what_all_processes_draw_is_counted():
    bar, a, b = Bar(), "shard 0", "shard 1"
    news = Mailbox((a, "drawn", 4), (b, "drawn", 2), (b, "through", 0), (a, "drawn", 4), (a, "through", 0))
    _follow(workers(None, 0), news, bar)
    assert bar.n == 10


def test_the_first_error_ends_all():
    with pytest.raises(RewardError, match="ill"):
        _follow(workers(None, None), Mailbox(("shard 1", "error", RewardError("ill"))), Bar())


def test_a_process_that_was_killed_is_told():
    with pytest.raises(ShardError, match=r"shard 1 of the study ended with exit code -9"):
        _follow(workers(None, -9), Mailbox(("shard 0", "drawn", 1)), Bar())


def test_errors_survive_the_way_out_of_a_process():
    wrapped = InstantiationException("hydra's words")
    wrapped.__cause__ = ValueError("the user's fault")
    told = pickle.loads(pickle.dumps(_portable(wrapped)))
    assert type(told) is ValueError and str(told) == "the user's fault" and "Traceback" not in str(told)
    assert "ValueError" in told.__notes__[0]
    odd = _portable(PartialRewardError(torch.zeros(1), {0: "why"}))  # its class cannot be built from its message
    assert "why" in str(pickle.loads(pickle.dumps(odd)))


@pytest.mark.parametrize("given, expected", [(None, 1), (1, 1), (3, 3)])
def test_number_of_processes(given: int | None, expected: int):
    assert number_of_processes(given, "cpu") == expected


def test_no_processes_are_refused():
    with pytest.raises(ValueError, match="processes=0"):
        number_of_processes(0, "auto")


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(study: Path, tmp_path: Path, monkeypatch: Any):
    draw(tmp_path, monkeypatch, "rollout.cfg_weight=1.5", "processes=2")
    assert contents(tmp_path) == contents(study)


@pytest.mark.slow
def test_a_reward_that_fails_in_a_process_ends_the_study(tmp_path: Path, monkeypatch: Any):
    with pytest.raises(RewardError, match="reward 'broken' failed on 2 images: KeyError"):
        draw(tmp_path, monkeypatch, f"+reward.broken={BROKEN}", "processes=2")
    assert list((tmp_path / "failures" / "broken").iterdir())
