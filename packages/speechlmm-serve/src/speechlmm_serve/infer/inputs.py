"""What `infer` reads: a folder, an audio or video file, a list of paths, or a manifest. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_serve.task_prompt import TaskPrompt

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp", ".wmv", ".flv", ".ogv"}
)
SUFFIXES = {
    # A video has a sound, too.
    "audio": frozenset(
        {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".mp4", ".mov", ".mkv", ".mka"}
        | {".webm", ".wma", ".aif", ".aiff", ".caf", ".au", ".amr", ".3gp"}
    ),
    "video": VIDEO_SUFFIXES,
}
"""What the files of a folder that are read end in, by modality."""


@dataclass(frozen=True)
class Input:
    """One thing to run the task on."""

    path: str
    """As it goes to the output."""
    media: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Content items by the model's inputs."""
    example: Example | None = None
    """What a manifest says about it."""
    name: str | None = None
    """Its key, where it is no file of the user's."""
    dataset: str | None = None
    """The dataset that it belongs to, in a specification."""
    chat: tuple[Message, ...] | None = None
    """The conversation up to the answer, where the call's task does not make it."""
    error: str | None = None
    """Why it cannot be asked about."""

    @property
    def key(self) -> str:
        """Tells inputs apart when an output is resumed."""
        if self.name is not None:
            return self.name
        item = next(iter(self.media.values()), {})
        part = "".join(f"#{name}={item[name]}" for name in ("start", "end") if name in item)
        return f"{self.path}{part}{f'#{self.example.id}' if self.example else ''}"


class Inputs(Protocol):
    """The inputs in order; may be gone through again."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __iter__(self) -> Iterator[Input]:
        """One after the other."""
        ...

    def check(self, prompt: TaskPrompt) -> None:
        """Tries a task out on them.

        Raises:
            ConfigError: The task lacks something, such as a language.
            DataError: It does for some lines of a manifest.
        """
        ...


@dataclass(frozen=True)
class FileInputs:
    """Audio or video files."""

    paths: Sequence[str]
    name: str
    """The model's input."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Input]:
        """One after the other."""
        for path in self.paths:
            yield Input(path, {self.name: {"path": path}})

    def check(self, prompt: TaskPrompt) -> None:
        """Tries a task out."""
        prompt.check(names=(self.name,))


class ManifestInputs:
    """The examples of a manifest; each is made when it is asked for.

    Args:
        path: The manifest.
        name: The model's input.

    Raises:
        DataError: Lines are wrong; all are counted, the first listed with their numbers.
    """

    def __init__(self, path: Path, name: str) -> None:
        from speechlmm_core.data.jsonl.reader import JsonlExamples

        self.examples = JsonlExamples(path, check_media=False, check_task=False)
        self.name = name
        faults = Faults()
        for number in range(len(self.examples)):
            if self._media(self.examples[number]) is None:
                faults.add(self.examples.place(number), f"no `{name}` to run on", order=number)
        faults.raise_if_any()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.examples)

    def __iter__(self) -> Iterator[Input]:
        """One after the other."""
        for number in range(len(self.examples)):
            example = self.examples[number]
            media = self._media(example)
            assert media is not None
            yield Input(next(iter(media.values()))["path"], media, example)

    def check(self, prompt: TaskPrompt) -> None:
        """Tries a task out on every line."""
        known: dict[tuple[Any, ...], str | None] = {}
        faults = Faults()
        for number in range(len(self.examples)):
            example = self.examples[number]
            media = tuple(self._media(example) or ())
            kind = (example.source_language, example.target_language, example.messages is None, media)
            if kind not in known:
                try:
                    known[kind] = prompt.check(example, names=media)
                except ConfigError as exc:
                    known[kind] = str(exc)
            if known[kind] is not None:
                faults.add(self.examples.place(number), str(known[kind]), order=number)
        faults.raise_if_any()

    def _media(self, example: Example) -> dict[str, dict[str, Any]] | None:
        """The media for the model, that of its input first; an example of messages is asked about its first medium."""
        items = dict(example.media)
        if example.messages is not None:
            items = {item["type"]: item for item in [i for m in example.messages for i in m.media][:1]}
        first = items.pop(self.name, None)
        if first is None and len(items) == 1:
            _, first = items.popitem()  # a manifest of `audio` (`video`) for a model whose input has another name
        if first is None:
            return None
        found = {self.name: first, **items}
        left_out = ("type", "transcript")
        return {name: {k: v for k, v in item.items() if k not in left_out} for name, item in found.items()}


def find_inputs(path: Path, name: str, modality: str = "audio") -> Inputs:
    """Lists the inputs, in order: a folder's sorted, a list's and a manifest's as they stand.

    Args:
        path: A folder (searched recursively, hidden files left out), a file, a `.txt` list of paths, or a `.jsonl`
            manifest.
        name: The model's input.
        modality: `audio` or `video`, which decides what files of a folder are read.

    Raises:
        DataError: There is nothing to read.
    """
    try:
        path = path.expanduser()
        found = path.exists()
    except (OSError, RuntimeError):
        found = False
    if not found:
        kind = "an audio" if modality == "audio" else f"a {modality}"
        raise DataError(f"no file or folder {str(path)!r}; expected a folder, {kind} file, a .txt list or a .jsonl")
    if path.is_dir():
        files = sorted(str(p) for p in path.rglob("*") if _is_medium(p, path, SUFFIXES[modality]))
        if not files:
            known = " ".join(sorted(SUFFIXES[modality]))
            raise DataError(f"the folder {str(path)!r} holds no {modality}; its files would end in {known}")
        return FileInputs(files, name)
    if path.suffix.lower() == ".txt":
        return FileInputs(_read_list(path), name)
    if path.suffix.lower() in (".jsonl", ".json"):
        return ManifestInputs(path, name)
    return FileInputs([str(path)], name)


def _is_medium(path: Path, folder: Path, suffixes: frozenset[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in suffixes and not hidden and path.is_file()


def _read_list(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read the list {str(path)!r}: {exc}") from exc
    # Not `splitlines`, which also splits at characters that a name may hold.
    written = [line.strip() for line in text.split("\n") if line.strip()]
    if not written:
        raise DataError(f"the list {str(path)!r} is empty; expected a path on each line")
    return [str(path.parent / _expand(line)) for line in written]


def _expand(line: str) -> Path:
    try:
        return Path(line).expanduser()
    except RuntimeError:  # `~` and what is no user
        return Path(line)
