"""Published checkpoints: what there is, fetching it from the Hugging Face Hub, putting it where runs look for it."""

from egrpo.downloads.artifacts import Artifact, DownloadError, Source
from egrpo.downloads.steps import by_hand, check_space, describe, obtain

__all__ = ["Artifact", "DownloadError", "Source", "by_hand", "check_space", "describe", "obtain"]
