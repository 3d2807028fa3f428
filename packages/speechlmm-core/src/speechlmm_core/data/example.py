"""An example: what a dataset yields and a task turns into a chat."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from speechlmm_core.chat.messages import Message


class Example(BaseModel):
    """One example of a corpus. Either `messages`, or the fields from which its task builds them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str = ""
    """Unique name within the dataset; the line's number where the manifest gives none."""
    task: str = "chat"
    """Name of the task (`asr`, `st`, `chat`)."""
    media: dict[str, dict[str, Any]] = {}
    """Media by input name: content items (`{"type": "audio", "path": ..., "start": ..., "end": ...}`)."""
    text: str | None = None
    """The answer that is supervised (the transcript for `asr`, the translation for `st`)."""
    transcript: str | None = None
    """What is spoken in the audio, where it is not the answer."""
    source_language: str | None = None
    """Language that is spoken (BCP 47: `en`)."""
    target_language: str | None = None
    """Language of the answer."""
    messages: list[Message] | None = None
    """A whole conversation, where the manifest gives one."""
    duration: float | None = None
    """Seconds of audio, where the manifest gives them."""
