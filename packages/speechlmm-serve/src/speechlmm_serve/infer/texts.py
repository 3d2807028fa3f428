"""Texts that `infer` works on: a file with one on each line, a folder of files, or a manifest. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechlmm_core.data.example import Example
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_serve.infer.inputs import Input
from speechlmm_serve.task_prompt import TaskPrompt

SUFFIX = ".txt"


class TextInputs:
    """Texts; those of a folder are whole files, those of a file are its lines.

    Args:
        path: A folder of `.txt` files, a text file, or a `.jsonl` manifest with `source_text` or `instruction`.
        prompt: The task, which says what the texts are.

    Raises:
        ConfigError: The task works on no text.
        DataError: There is nothing to read, or it cannot be read.
    """

    def __init__(self, path: Path, prompt: TaskPrompt) -> None:
        prompt.example_of("probe")  # says whether it works on texts
        path = path.expanduser()
        self.path = str(path)
        self.examples: Sequence[Example]
        if path.suffix.lower() in (".jsonl", ".json"):
            from speechlmm_core.data.jsonl.reader import JsonlExamples

            self.examples = JsonlExamples(path, check_media=False, check_task=False)
            return
        if path.is_dir():
            files = sorted(one for one in path.rglob(f"*{SUFFIX}") if one.is_file())
            texts = [(str(one.relative_to(path)), _read(one)) for one in files]
        else:
            texts = [(str(i), line) for i, line in enumerate(_read(path).split("\n"), 1)]
        self.examples = [prompt.example_of(text.strip(), name) for name, text in texts if text.strip()]
        if not self.examples:
            kind = f"a folder of {SUFFIX} files" if path.is_dir() else "a text on each line"
            raise DataError(f"no text in {self.path!r}; expected {kind}")

    def __len__(self) -> int:
        """How many there are."""
        return len(self.examples)

    def __iter__(self) -> Iterator[Input]:
        """One after the other."""
        for number in range(len(self.examples)):
            yield Input(self.path, {}, self.examples[number])

    def check(self, prompt: TaskPrompt) -> None:
        """Tries the task out on every text.

        Raises:
            DataError: It lacks something for some of them.
        """
        faults = Faults()
        for number in range(len(self.examples)):
            example = self.examples[number]
            try:
                prompt.check(example)
            except ConfigError as exc:
                faults.add(f"{self.path}:{example.id}", str(exc), order=number)
        faults.raise_if_any()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        reason = "it does not exist" if isinstance(exc, FileNotFoundError) else str(exc)
        raise DataError(f"cannot read the texts in {str(path)!r}: {reason}") from exc
