"""Prompt records, the reader of prompt files, and the datamodule that serves them."""

from egrpo.data.datamodule import PromptDataModule
from egrpo.data.reader import PromptFileError, read_prompts
from egrpo.types import TASK_TYPES, PromptRecord

__all__ = ["TASK_TYPES", "PromptDataModule", "PromptFileError", "PromptRecord", "read_prompts"]
