"""Plain text, learnt token by token. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class NTPTaskConfig(TaskConfig):
    """Next-token prediction: `text` stands by itself, without a chat template, and every token but the first is learnt.

    Where the model is asked, it continues `source_text`, or the first half of the text's words.
    """

    type: Literal["ntp"] = "ntp"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("rouge",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("text",)

    def prompts(self, language: str = "en") -> list[str]:
        """None: nothing is asked."""
        return []

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        if not (example.text or "").strip():
            return f"task {self.type!r} needs a `text` to learn, got {example.text!r}"
        return None

    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The text as the only message; `source_text` is its beginning, where there is one.

        Args:
            example: The example.
            draw: Without meaning here.
            with_answer: Whether the text is whole, or ends where the model continues it.
            shots: Without meaning here.

        Raises:
            DataError: There is no text.
        """
        fault = self.check(example) if with_answer or example.source_text is None else None
        if fault:
            raise DataError(f"example {example.id!r}: {fault}")
        begin, rest = self._halves(example)
        if not with_answer and not begin.strip():
            raise DataError(f"example {example.id!r}: task {self.type!r} has nothing to go on from: one word, {rest!r}")
        return [Message(role="text", content=[{"type": "text", "text": begin + rest if with_answer else begin}])]

    def references(self, example: Example) -> tuple[str, ...]:
        """How the text goes on."""
        _, rest = self._halves(example)
        return (rest.strip(),) if rest.strip() else ()

    def _halves(self, example: Example) -> tuple[str, str]:
        text = example.text or ""
        if example.source_text is not None:
            begin = example.source_text
            apart = not begin or begin[-1].isspace() or text[:1].isspace()
            return begin, text if apart else f" {text}"
        words = text.split()
        # The split falls before a space, for that is where most tokenizers begin a word's token.
        place = 0
        for word in words[: len(words) // 2]:
            place = text.index(word, place) + len(word)
        return text[:place], text[place:]
