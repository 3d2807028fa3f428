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
    task_config: Any = None
    """The task with its options (`TaskConfig`), where a dataset's specification gives some; else `task` names it."""
    media: dict[str, dict[str, Any]] = {}
    """Media by input name: content items (`{"type": "audio", "path": ..., "start": ..., "end": ...}`)."""
    text: str | None = None
    """The answer that is supervised (the transcript for `asr`, the translation for `st`, the summary for `ssum`)."""
    transcript: str | None = None
    """What is spoken in the audio, where it is not the answer."""
    source_text: str | None = None
    """Text that the task works on: the sentence to translate, the document to sum up, an instruction's input."""
    instruction: str | None = None
    """What the user asks in the corpus' own words: a question about the audio, an instruction."""
    source_language: str | None = None
    """Language that is spoken, or of `source_text` (BCP 47: `en`)."""
    target_language: str | None = None
    """Language of the answer."""
    speaker: str | None = None
    """Who speaks: unique within the dataset."""
    quality: float | None = None
    """The corpus' own score of the example; the higher the better."""
    fields: dict[str, Any] = {}
    """What only some tasks know, as JSON has it: `intent`, `slots`, further accepted `answers`, `words` with times."""
    messages: list[Message] | None = None
    """A whole conversation, where the manifest gives one."""
    duration: float | None = None
    """Seconds of audio, where the manifest gives them."""
