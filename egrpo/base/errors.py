"""Which errors are written for the user."""

from __future__ import annotations


class UserError(ValueError):
    """An error whose message tells the user what is wrong, where, and what to do; it ends a command in one sentence.

    Every other exception keeps its traceback. A class of errors with messages for the user derives from this one.
    """
