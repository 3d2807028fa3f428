"""Conversations in text. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speechlmm_core.tasks.conversation.config import ConversationTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class MultiTurnTextInstructTaskConfig(ConversationTaskConfig):
    """Conversations in text (`messages`), of which every answer is learnt unless `supervise` says otherwise."""

    type: Literal["multi_turn_text_instruct"] = "multi_turn_text_instruct"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("rouge",)

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        media = [item["type"] for message in example.messages or () for item in message.media]
        if media:
            return f"task {self.type!r} takes text only, got {media[0]!r} in `messages` (task 'chat' takes media)"
        return super().check(example)
