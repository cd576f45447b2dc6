"""The border of every command: which settings there are, and which values they take, checked first."""

from egrpo.settings.check import check_settings
from egrpo.settings.overrides import override
from egrpo.settings.words import check_folder, check_words, explained, explained_key, explained_part

__all__ = ["check_folder", "check_settings", "check_words", "explained", "explained_key", "explained_part", "override"]
