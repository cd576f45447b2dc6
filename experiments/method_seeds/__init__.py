"""GRPO beside EG-GRPO, five seeds each."""
