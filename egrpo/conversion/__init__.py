"""Checkpoints in their authors' formats become directories that plain transformers loads; one file a kind."""

from egrpo.conversion.checkpoints import ConversionError, Summary, load_state, save_converted

__all__ = ["ConversionError", "Summary", "load_state", "save_converted"]
