"""What `infer` reads: a folder, an audio file, a list of paths, or a manifest. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".mp4", ".webm", ".wma", ".aif", ".aiff"}
)


@dataclass(frozen=True)
class Input:
    """One thing to run the task on."""

    path: str
    """As it goes to the output."""
    item: dict[str, Any] = field(default_factory=dict)
    """The content item of the medium."""
    example: Example | None = None
    """What a manifest says about it."""

    @property
    def key(self) -> str:
        """Tells inputs apart when an output is resumed."""
        part = "".join(f"#{name}={self.item[name]}" for name in ("start", "end") if name in self.item)
        return f"{self.path}{part}#{self.example.id if self.example else ''}"


def find_inputs(path: Path, name: str) -> list[Input]:
    """Lists the inputs, in order: a folder's sorted, a list's and a manifest's as they stand.

    Args:
        path: A folder (searched recursively), an audio file, a `.txt` list of paths, or a `.jsonl` manifest.
        name: The model's audio input.

    Raises:
        DataError: There is nothing to read.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"no file or folder {str(path)!r}; expected a folder, an audio file, a .txt list or a .jsonl")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        if not files:
            known = " ".join(sorted(AUDIO_SUFFIXES))
            raise DataError(f"the folder {str(path)!r} holds no audio; its files would end in {known}")
        return [_file(file) for file in files]
    if path.suffix.lower() == ".txt":
        return _from_list(path)
    if path.suffix.lower() in (".jsonl", ".json"):
        return _from_manifest(path, name)
    return [_file(path)]


def _file(path: Path) -> Input:
    return Input(str(path), {"path": str(path)})


def _from_list(path: Path) -> list[Input]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read the list {str(path)!r}: {exc}") from exc
    written = [line.strip() for line in lines if line.strip()]
    if not written:
        raise DataError(f"the list {str(path)!r} is empty; expected a path on each line")
    return [_file(path.parent / Path(line).expanduser()) for line in written]


def _from_manifest(path: Path, name: str) -> list[Input]:
    from speechlmm_core.data.jsonl.reader import JsonlExamples

    examples: Sequence[Example] = JsonlExamples(path, check_media=False, check_task=False)
    found: list[Input] = []
    faults: list[str] = []
    for number in range(len(examples)):
        example = examples[number]
        media = example.media or _media_of_messages(example)
        item = media.get(name) or (next(iter(media.values())) if len(media) == 1 else None)
        if item is None or "path" not in item:
            faults.append(f"{path}: example {example.id or number + 1!r} has no `audio`")
            continue
        plain = {key: value for key, value in item.items() if key not in ("type", "transcript")}
        found.append(Input(item["path"], plain, example))
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise DataError("\n".join(faults[:5]) + more)
    return found


def _media_of_messages(example: Example) -> dict[str, dict[str, Any]]:
    items = [item for message in example.messages or () for item in message.media]
    return {item["type"]: item for item in items[:1]}
