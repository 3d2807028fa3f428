"""Whole conversations. Imports no torch."""

from __future__ import annotations

from typing import Literal

from speechlmm_core.tasks.conversation.config import ConversationTaskConfig


class ChatTaskConfig(ConversationTaskConfig):
    """Conversations as the manifest gives them; media carry their own `transcript` where they have one."""

    type: Literal["chat"] = "chat"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("wer", "cer")
