"""Where ranks share the weights of one model, each of its modules must run equally often on all of them."""

from __future__ import annotations

from typing import Protocol


class Lockstep(Protocol):
    """What is agreed on among ranks."""

    def all_done(self, done: bool) -> bool:
        """Whether every rank is done."""
        ...

    def most(self, count: int) -> int:
        """The greatest count of any rank."""
        ...


class Alone:
    """Nobody to agree with: every process has the whole weights."""

    def all_done(self, done: bool) -> bool:
        return done

    def most(self, count: int) -> int:
        return count


ALONE = Alone()
