"""A conversation: its history, its medium, and what each line does to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.chat.messages import Message
from speechlmm_serve.task_prompt import TaskPrompt, audio_input

if TYPE_CHECKING:
    from speechlmm_core.inference.engine import InferenceEngine
    from speechlmm_core.inference.options import GenerationOptions


class ChatSession:
    """A conversation with a model.

    Args:
        engine: The model.
        options: How it generates.
        task: The task that asks about a file when no question comes with it.
    """

    def __init__(self, engine: InferenceEngine, options: GenerationOptions, task: TaskPrompt | None = None) -> None:
        self.engine = engine
        self.options = options
        self.task = task
        self.history: list[Message] = []
        self._waiting: dict[str, Any] | None = None

    def reset(self) -> None:
        """Forgets the conversation and the medium."""
        self.history = []
        self._waiting = None

    def load(self, path: Path) -> float:
        """Starts a new conversation about an audio file.

        Returns:
            Its duration in seconds.

        Raises:
            SpeechLMMError: The file cannot be used; the conversation stays as it was.
        """
        config = self.engine.processor.config
        name = audio_input(config)
        item = {"type": name, "path": str(path)}
        medium = config.inputs[name].encoder.load(item)
        self.reset()
        self._waiting = item
        return medium.duration_s

    @property
    def can_ask_task(self) -> bool:
        """Whether a file waits to be asked about, and a task knows the question."""
        return self._waiting is not None and self.task is not None

    def ask_task(self) -> Iterator[str]:
        """Asks the task's question about the file."""
        assert self.task is not None
        assert self._waiting is not None
        item = {key: value for key, value in self._waiting.items() if key != "type"}
        messages = self.task.messages({self._waiting["type"]: item})
        self._waiting = None
        yield from self._answer([*self.history, *messages])

    def ask(self, text: str) -> Iterator[str]:
        """Asks a question; the answer comes piece by piece. Closing the iterator stops it, and keeps what was said.

        Raises:
            SpeechLMMError: The message cannot be used; the conversation stays as it was.
        """
        content: list[dict[str, Any]] = [] if self._waiting is None else [self._waiting]
        content.append({"type": "text", "text": text})
        yield from self._answer([*self.history, Message(role="user", content=content)])
        self._waiting = None

    def _answer(self, messages: list[Message]) -> Iterator[str]:
        said = ""
        try:
            for piece in self.engine.stream(messages, self.options):
                said += piece
                yield piece
        finally:
            if said:
                answer = Message(role="assistant", content=[{"type": "text", "text": said.strip()}])
                self.history = [*messages, answer]
                self._waiting = None
