"""The base of tasks that ask in words. Imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.draw import derive
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig
from speechlmm_core.tasks.languages import language_code, language_name, unknown_language
from speechlmm_core.tasks.prompts import has_prompts, read_prompts

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example

Content = list[dict[str, Any]]
OF_THE_EXAMPLE = ("source", "target")
"""Words of `prompt_languages` that stand for a language of the example."""
MAX_SHOTS = 64


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class PromptedTaskConfig(TaskConfig):
    """A task that asks in words, which are drawn for each example from lists of wordings.

    A subclass says what the user's message holds beside the wording (`content`), and what the answer is (`answer`);
    its lists are the files `prompts/<language>.yaml` beside it.
    """

    prompt_languages: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = ("en",)
    """Languages to ask in, one drawn for each example: codes, or `source` and `target` for the example's own."""
    prompts_path: str | None = None
    """Your own wordings beside the shipped ones: a YAML list, or a folder of `<language>.yaml` files."""
    system: str | None = None
    """A system message to begin with."""
    num_few_shots: Annotated[int, Field(ge=0, le=MAX_SHOTS)] = 0
    """Further examples of the dataset, with their answers, that are shown before the one that is asked about."""
    few_shots_seed: Annotated[int, Field(ge=0)] = 0
    """Draws from the dataset the examples of which some are shown before each; another seed, other examples."""
    supervise: Literal["all", "last"] = "all"
    """Which answers of a chat are learnt: all of them, those of the examples shown first included, or the last."""

    fields: ClassVar[tuple[str, ...]] = ()
    """What every wording holds in braces."""
    paths: ClassVar[tuple[str, ...]] = ("prompts_path",)
    """Options that are paths."""

    @field_validator("prompt_languages")
    @classmethod
    def _are_languages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if code not in OF_THE_EXAMPLE and language_code(code) is None:
                raise ValueError(f"{unknown_language(code)}, or one of: source, target")
        return tuple(code if code in OF_THE_EXAMPLE else language_code(code) or code for code in value)

    def rooted(self, base: Path) -> Self:
        """The same task, with relative paths among its options starting at ``base``."""
        given = {name: getattr(self, name) for name in self.paths if getattr(self, name) is not None}
        if not given:
            return self
        return self.model_copy(update={name: str(base / Path(path).expanduser()) for name, path in given.items()})

    @property
    def num_shots(self) -> int:
        """How many further examples of the dataset are shown before the one that is asked about."""
        return self.num_few_shots

    @property
    def shots_seed(self) -> int:
        """Draws the few examples of the dataset of which some are shown before each."""
        return self.few_shots_seed

    @property
    def slack(self) -> int:
        """Tokens by which another wording may be longer than the longest: one at each border of what it holds."""
        return 2 * len(self.fields)

    def prompts(self, language: str = "en") -> list[str]:
        """The wordings of the task's prompt in a language, the user's own after the shipped ones.

        Raises:
            ConfigError: No prompts in that language, or a file of them is wrong.
        """
        return read_prompts(self._package, language, self.prompts_path, self.fields)

    def wordings(self, example: Example, language: str) -> list[str]:
        """The wordings that are for an example."""
        return self.prompts(language)

    def values(self, example: Example, language: str) -> dict[str, str]:
        """What stands in a wording's braces; languages are called by their names in the prompt's language."""
        return {}

    @abstractmethod
    def content(self, example: Example, prompt: str) -> Content:
        """The user's message about an example.

        Args:
            example: The example.
            prompt: The wording, filled in.
        """

    def answer(self, example: Example) -> str | Content:
        """The assistant's message; content items where it holds more than text."""
        return example.text or ""

    @abstractmethod
    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        return self.lack(example, with_answer=True) or self._lacks_language(example)

    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The chat for an example: what the task asks, then the answer.

        Args:
            example: The example.
            draw: A number drawn from (seed, epoch, index); decides the prompt's language and wording, 0 being the
                first of each.
            with_answer: Whether the assistant's answer is appended (training) or left to the model.
            shots: Examples that are shown first, asked about in the same words, with their answers.

        Raises:
            DataError: An example lacks what the task needs.
            ConfigError: There are no prompts in a language that is asked for.
        """
        found = [] if self.system is None else [Message.model_validate({"role": "system", "content": self.system})]
        for shot in shots:
            found += self._turn(shot, draw, with_answer=True)
        found += self._turn(example, draw, with_answer=with_answer)
        return supervise_last(found) if self.supervise == "last" else found

    def draws(self, example: Example) -> Sequence[int]:
        """Draws that lead to every language and wording that the example may get."""
        return covering_draws(tuple(len(self.wordings(example, code)) for code in self.languages(example)))

    def references(self, example: Example) -> tuple[str, ...]:
        """The answers that are right."""
        answer = self.answer(example)
        if not isinstance(answer, str):
            answer = "".join(item["text"] for item in answer if item["type"] == "text")
        return (answer,) if answer.strip() else ()

    def languages(self, example: Example) -> list[str]:
        """The languages that an example may be asked in.

        `source` and `target` fall away where the example does not name the language, or there are no wordings in it.
        """
        found: list[str] = []
        for word in self.prompt_languages:
            code: str | None = word
            if word in OF_THE_EXAMPLE:
                code = language_code(getattr(example, f"{word}_language") or "")
                if code is None or not has_prompts(self._package, code, self.prompts_path):
                    continue
            if code not in found:
                found.append(code or word)
        return found

    def prompt(self, example: Example, draw: int) -> str:
        """The wording for an example, filled in.

        Raises:
            DataError: No language is left to ask in.
        """
        languages = self.languages(example)
        if not languages:
            raise DataError(f"example {example.id!r}: {self._lacks_language(example)}")
        language = languages[derive(draw, "language") % len(languages)]
        wordings = self.wordings(example, language)
        wording = wordings[derive(draw, "wording") % len(wordings)]
        values = self.values(example, language)
        return wording.format(**values) if values else wording

    def _turn(self, example: Example, draw: int, *, with_answer: bool) -> list[Message]:
        fault = self.lack(example, with_answer=with_answer)
        if fault:
            raise DataError(f"example {example.id!r}: {fault}")
        found = [Message(role="user", content=self.content(example, self.prompt(example, draw)))]
        if with_answer:
            found.append(Message.model_validate({"role": "assistant", "content": self.answer(example)}))
        return found

    def _lacks_language(self, example: Example) -> str | None:
        if self.languages(example):
            return None
        spoken = ", ".join(f"{word} {getattr(example, f'{word}_language')!r}" for word in OF_THE_EXAMPLE)
        return (
            f"task {self.type!r} has no prompts in the example's languages ({spoken}); "
            "add 'en' to `prompt_languages`, or give your own wordings by `prompts_path`"
        )

    @property
    def _package(self) -> str:
        return type(self).__module__.rpartition(".")[0]


def supervise_last(messages: Sequence[Message]) -> list[Message]:
    """A chat of whose answers only the last is learnt."""
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    earlier = set(answers[:-1])
    return [m.model_copy(update={"supervised": False}) if i in earlier else m for i, m in enumerate(messages)]


def named_languages(example: Example, language: str) -> dict[str, str]:
    """The names of an example's languages in the prompt's language, for a wording's braces."""
    fields = ("source_language", "target_language")
    return {field: language_name(getattr(example, field) or "", language) or "" for field in fields}


def lacks_languages(task: str, example: Example) -> str | None:
    """What an example's pair of languages lacks for translation."""
    for field in ("source_language", "target_language"):
        code = getattr(example, field)
        if not code:
            return f"task {task!r} needs a `{field}` (a code like 'en'), got {code!r}"
        if language_name(code) is None:
            return unknown_language(code)
    return None


@lru_cache(maxsize=256)
def covering_draws(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Draws that lead to every wording of every language, 0 (the first of each) first.

    Args:
        counts: Number of wordings by language.
    """
    wanted = {(language, wording) for language, count in enumerate(counts) for wording in range(count)}
    found: list[int] = []
    number = 0
    while wanted:
        language = derive(number, "language") % len(counts)
        pair = (language, derive(number, "wording") % counts[language])
        if pair in wanted:
            wanted.remove(pair)
            found.append(number)
        number += 1
    return tuple(found) or (0,)
