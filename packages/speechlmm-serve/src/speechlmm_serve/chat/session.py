"""A conversation: its history, its medium, and what each line does to them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.chat.messages import Message
from speechlmm_serve.task_prompt import TaskPrompt, media_input

if TYPE_CHECKING:
    from speechlmm_core.inference.engine import InferenceEngine
    from speechlmm_core.inference.options import GenerationOptions

Pieces = Generator[str, None, None]


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

    def load(self, path: Path, modality: str = "audio") -> float:
        """Starts a new conversation about a file.

        Args:
            path: The file.
            modality: What of it is meant, `audio` or `video`.

        Returns:
            Its duration in seconds.

        Raises:
            SpeechLMMError: The file cannot be used; the conversation stays as it was.
        """
        item = {"type": media_input(self.engine.processor.config, modality), "path": str(path)}
        sample = self.engine.prepare([Message(role="user", content=[item])])
        self.reset()
        self._waiting = item
        return sample.duration_s

    @property
    def can_ask_task(self) -> bool:
        """Whether a file waits to be asked about, and a task knows the question."""
        return self._waiting is not None and self.task is not None

    def ask_task(self) -> Pieces:
        """Asks the task's question about the file; otherwise as `ask`."""
        assert self.task is not None
        return self._answer([*self.history, *self.task.messages(self._media())])

    def ask(self, text: str) -> Pieces:
        """Asks a question; the answer comes piece by piece.

        A task about texts (`mt`, `tsum`) puts the text into its own words, and one that answers questions about a file
        (`sqa`) does so with the question.

        Closing the iterator stops the answer. What was said until then stays in the conversation; if nothing was,
        the question is taken back.

        Raises:
            SpeechLMMError: The message cannot be used; the conversation stays as it was.
        """
        if self.task is not None and self._waiting is None and self.task.takes_text:
            return self._answer(self.task.messages({}, self.task.example_of(text)))  # each text stands by itself
        if self.task is not None and self._waiting is not None and self.task.takes_question:
            return self._answer([*self.history, *self.task.asking(text).messages(self._media())])
        content: list[dict[str, Any]] = [] if self._waiting is None else [self._waiting]
        content.append({"type": "text", "text": text})
        return self._answer([*self.history, Message(role="user", content=content)])

    def _media(self) -> dict[str, dict[str, Any]]:
        """The file that waits, by the model's input."""
        assert self._waiting is not None
        return {self._waiting["type"]: {key: value for key, value in self._waiting.items() if key != "type"}}

    def _answer(self, messages: list[Message]) -> Pieces:
        said = ""
        try:
            for piece in self.engine.stream(messages, self.options):
                said += piece
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if said.strip():
                self._keep(messages, said)
            raise
        self._keep(messages, said)

    def _keep(self, messages: list[Message], said: str) -> None:
        answer = Message(role="assistant", content=[{"type": "text", "text": said.strip()}])
        self.history = [*messages, answer]
        self._waiting = None
