"""Faults of a specification: a line for each, with its path, the value and the nearest name. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.registry import nearest

B = TypeVar("B", bound=BaseModel)
SHOWN = 80
_LONG = re.compile(r"\S{200,}")


_OF_SPEECH = "of speech output, which no task here has; remove it"
_OF_ANSWERS = "of answers with words around them, where here they are the text alone; remove it"
_FORMER = {
    "INPUTS_TEXT_LIST": "of prompts, which tasks bring here; remove it, or name your own by the task's `prompts_path`",
    "OUTPUTS_TEXT_LIST": _OF_ANSWERS,
    "add_translation_prefix": _OF_ANSWERS,
    **dict.fromkeys(("add_speaker_descriptions", "caption_only", "condition_on_input"), _OF_SPEECH),
    "condition_on_speaker_prob": _OF_SPEECH,
}
"""Keys of the first SpeechLMM that have no counterpart."""


class SpecFaults:
    """The lines so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, place: str, message: str) -> None:
        """Notes a fault at a path (`datasets[2].partitions.dev.amount`)."""
        place = "".join(one if one.isprintable() else repr(one)[1:-1] for one in place)  # a key may hold a line's end
        self.lines.append(f"{shortened(place)}: {shortened(' '.join(message.split()))}")

    def validated(self, cls: type[B], values: Mapping[str, Any], place: str) -> B | None:
        """A model made of values; None where they do not fit, which is noted."""
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            for detail in exc.errors(include_url=False):
                self.add(*_worded(detail, cls, place))
        except (PydanticCustomError, SpeechLMMError, RecursionError) as exc:
            self.add(place, str(exc))
        return None


def shown(value: Any) -> str:
    """A value as messages show it, not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def shortened(text: str) -> str:
    """A text in which no word is longer than a line."""
    return _LONG.sub(lambda word: f"{word[0][:SHOWN]}…", text).encode("utf-8", "backslashreplace").decode()


def unknown_key(key: str, known: Iterable[str], more: str = "") -> str:
    """Words for a key that is none, with the nearest that is; ``more`` follows where it is not one of old."""
    if key in _FORMER:
        return f"{key!r} is a key of the first SpeechLMM, {_FORMER[key]}"
    return f"unknown key {key!r}{nearest(key, list(known))}{more}"


def key_fault(wanted: str, keys: Iterable[str], known: Iterable[str]) -> str | None:
    """Words that a key resembles the one that is missing; None if none does."""
    for key in keys:
        if key not in known and f"{wanted!r}" in nearest(key, list(known)):
            return f"unknown key {key!r}; did you mean {wanted!r}?"
    return None


def _worded(detail: ErrorDetails, cls: type[BaseModel], place: str) -> tuple[str, str]:
    where = place
    for part in detail["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        known = sorted(cls.model_fields) if len(detail["loc"]) == 1 else []
        listed = f" (known: {', '.join(known)})" if known else ""
        return where, unknown_key(key, known, listed)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "crossed", "unknown_component") or isinstance(detail["input"], Mapping):
        return where, message
    return where, f"{message[:1].lower()}{message[1:]}, got {shown(detail['input'])}"
