"""Which errors are written for the user."""

from __future__ import annotations


class UserError(ValueError):
    """An error whose message tells the user what is wrong, where, and what to do; it ends a command in one sentence.

    Every other exception keeps its traceback. A class of errors with messages for the user derives from this one.
    """


class FileError(UserError, OSError):
    """A file cannot be written; the message names it, the reason and a remedy."""


class FolderTakenError(UserError):
    """A folder belongs to another run, which must not be touched: nothing is written into it, not even error.txt."""


class ConsequenceError(UserError):
    """An error that a failure of another rank most likely caused; that rank's error is reported where there is one."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a setting names is not there."""


class NotFiniteError(UserError, FloatingPointError):
    """A model computes NaN or infinity."""
