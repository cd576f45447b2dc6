"""The texts around a prompt: what the policy reads before it writes a plan, and before it draws an image."""

from __future__ import annotations

import re
from dataclasses import dataclass

from egrpo.base.errors import UserError
from egrpo.paths import resolve


@dataclass(frozen=True)
class Templates:
    """Builds conversation texts in the format of Janus (deepseek-ai/Janus) as T2I-R1 and EG-GRPO use it.

    Args:
        reasoning: User message that asks for a plan; holds "{prompt}".
        system: Sentence before the reasoning conversation, None for none. Image prompts never have one.
        image: User message of the image prompt with a plan; may hold "{prompt}" and "{plan}".
        user_role: Name of the side that asks.
        assistant_role: Name of the side that answers.
        role_separator: Text between a role and its message.
        turn_separator: Text after the system sentence and after a message.
        reasoning_file: A text file whose content takes the place of `reasoning`; None = none.

    Raises:
        UserError: `reasoning` or `image` lacks "{prompt}", or there is no such file.
    """

    reasoning: str
    system: str | None = None
    image: str = "{prompt}. {plan}"
    user_role: str = "User"
    assistant_role: str = "Assistant"
    role_separator: str = ": "
    turn_separator: str = "\n\n"
    reasoning_file: str | None = None

    def __post_init__(self) -> None:
        if self.reasoning_file is not None:
            try:
                text = resolve(self.reasoning_file).read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"templates.reasoning_file={self.reasoning_file} cannot be read: {error}") from error
            object.__setattr__(self, "reasoning", text)
        for name in ("reasoning", "image"):
            if "{prompt}" not in getattr(self, name):
                where = self.reasoning_file if name == "reasoning" and self.reasoning_file else f"templates.{name}"
                raise UserError(f"{where} must hold the placeholder {{prompt}}")

    def reasoning_text(self, prompt: str) -> str:
        """The text after which a plan for `prompt` is written."""
        return self._conversation(self.reasoning.replace("{prompt}", prompt), self.system)

    def image_text(self, prompt: str, plan: str | None = None) -> str:
        """The text before begin-of-image; `plan` None = without CoT, the message is the prompt alone."""
        if plan is None:
            return self._conversation(prompt, None)
        values = {"{prompt}": prompt, "{plan}": plan}
        # One pass, so that a prompt that holds "{plan}" stays as it is.
        return self._conversation(re.sub(r"\{prompt\}|\{plan\}", lambda found: values[found[0]], self.image), None)

    def _conversation(self, message: str, system: str | None) -> str:
        head = "" if not system else system + self.turn_separator
        user = self.user_role + self.role_separator + message.strip() + self.turn_separator
        return head + user + self.assistant_role + self.role_separator.rstrip()
