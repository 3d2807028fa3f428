"""One line of a manifest: what may stand on it, and the example that it makes. Imports no torch.

The checks are plain Python: a manifest may have millions of lines, and the pydantic models would take most of a
minute where this takes seconds. What they check is checked here, so the models are built without validation.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.columns import ColumnMap
from speechlmm_core.data.example import Example
from speechlmm_core.data.near_miss import mistyped
from speechlmm_core.errors import DataError
from speechlmm_core.media.source import PART_KEYS, locator_fault

SHORT_INPUTS = ("audio", "video")
"""Inputs that a line may name by a key of its own; others stand under `media`."""
LINE_KEYS = (
    *SHORT_INPUTS,
    *("text", "messages", "media", "task", "language", "source_language", "target_language"),
    *("transcript", "source_text", "instruction", "speaker", "quality", "fields", "duration", "id"),
)
MEDIUM_KEYS = ("type", "path", "transcript", "start", "end", "offset", "size", "row", "column", "member", "channel")
TEXT_KEYS = ("type", "text")
MESSAGE_KEYS = ("role", "content")
LANGUAGES = ("language", "source_language", "target_language")
STRINGS = ("text", "task", *LANGUAGES, "transcript", "source_text", "instruction")
ROLES = ("system", "user", "assistant")
JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


class LineFaultsError(Exception):
    """Everything that is wrong with a line."""

    def __init__(self, faults: list[str], items: list[dict[str, Any]] | None = None) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
        self.items = [item for item in items or () if isinstance(item.get("path"), str)]


@dataclass(frozen=True)
class LineForm:
    """What holds for all lines of a manifest."""

    columns: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Source by field, where lines have keys of other names (see `speechlmm_core.data.columns`)."""
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the manifest's path says (`source_language`); what a line says holds."""
    task: str | None = None
    """Name of the task that the specification gives them; their own counts otherwise."""

    def __post_init__(self) -> None:
        if self.columns:
            ColumnMap(self.columns)


PLAIN = LineForm()


def parse_line(line: bytes, number: int, base: str, form: LineForm = PLAIN) -> Example:
    """Makes the example of a line.

    Args:
        line: The line as it stands in the file.
        number: Its number, counted from 1; the example's name where the line gives none.
        base: Folder where relative paths start.
        form: What holds for all lines.

    Raises:
        LineFaultsError: The line is not JSON, or fields are missing or of a wrong kind.
    """
    try:
        raw = json.loads(line)
    except UnicodeDecodeError as exc:
        raise LineFaultsError([f"not UTF-8 ({exc.reason} at byte {exc.start}); save the manifest as UTF-8"]) from exc
    except json.JSONDecodeError as exc:
        raise LineFaultsError([f"bad JSON: {exc.msg} at column {exc.colno}"]) from exc
    except ValueError as exc:  # a number with thousands of digits
        raise LineFaultsError([f"bad JSON: {exc}"]) from exc
    except RecursionError as exc:
        raise LineFaultsError(["bad JSON: nested too deeply"]) from exc
    if not isinstance(raw, dict):
        raise LineFaultsError([f"expected a JSON object, got {_kind(raw)}"])
    faults: list[str] = []
    if form.columns:
        raw = _renamed(raw, form, faults)
    elif not raw.keys() <= _LINE_SET:
        faults = mistyped(raw, LINE_KEYS)
    raw = {key: value for key, value in raw.items() if value is not None}
    _check_scalars(raw, faults, escaped=b"\\u" in line)
    language, source = raw.get("language"), raw.get("source_language")
    if language is not None and source is not None and language != source:
        faults.append(f"`language` {language!r} and `source_language` {source!r} differ; give one of them")
    if "messages" in raw:
        media: dict[str, dict[str, Any]] = {}
        messages = _messages(raw, base, faults)
    else:
        media, messages = _media(raw, base, faults, needed=form.task is None), None
    if faults:
        raise LineFaultsError(
            faults, [*media.values(), *(item for message in messages or () for item in message.media)]
        )
    return Example.model_construct(
        id=str(raw.get("id", number)),
        task=form.task or raw.get("task", "chat" if messages is not None else "asr"),
        media=media,
        text=raw.get("text"),
        transcript=raw.get("transcript"),
        source_text=raw.get("source_text"),
        instruction=raw.get("instruction"),
        source_language=source or language or form.told.get("source_language"),
        target_language=raw.get("target_language") or form.told.get("target_language"),
        speaker=None if "speaker" not in raw else str(raw["speaker"]),
        quality=None if "quality" not in raw else float(raw["quality"]),
        fields=raw.get("fields", {}),
        messages=messages,
        duration=None if "duration" not in raw else float(raw["duration"]),
    )


def media_items(example: Example) -> list[dict[str, Any]]:
    """The content items of an example that are read from files."""
    if example.messages is not None:
        return [item for message in example.messages for item in message.media]
    return list(example.media.values())


def _renamed(raw: Mapping[str, Any], form: LineForm, faults: list[str]) -> dict[str, Any]:
    """A line with the keys that a mapping gives it; keys that it does not mention keep their names."""
    found: dict[str, Any] = {key: value for key, value in raw.items() if key in _LINE_SET and key not in form.columns}
    columns = ColumnMap(form.columns, constants=form.told)
    for name in columns.columns:
        try:
            value = columns.value(name, raw)
        except DataError as exc:
            faults.append(str(exc))
            continue
        head, _, rest = name.partition(".")
        if not rest:
            found[name] = value
            continue
        if head == "media":
            head, _, rest = rest.partition(".")
            owner: dict[str, Any] = found.setdefault("media", {})
        else:
            owner = found
        if not rest:
            owner[head] = value
        elif value is not None:
            inside = owner.get(head, {})
            owner[head] = {**({"path": inside} if isinstance(inside, str) else inside), rest: value}
    return {key: _with_end(value) if isinstance(value, dict) else value for key, value in found.items()}


def _with_end(item: dict[str, Any]) -> dict[str, Any]:
    """A medium that a mapping gives a duration, with its end instead."""
    length, start = item.get("duration"), item.get("start") or 0.0
    if "path" not in item or length is None or not _is_number(length) or not _is_number(start):
        return item
    rest = {key: value for key, value in item.items() if key != "duration"}
    return {"end": round(float(start) + float(length), 6), **rest}


_LINE_SET = frozenset(LINE_KEYS)
_MEDIUM_SET = frozenset(MEDIUM_KEYS)


def _kind(value: Any) -> str:
    return JSON_NAMES.get(type(value), "null")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_scalars(raw: Mapping[str, Any], faults: list[str], *, escaped: bool) -> None:
    for key in STRINGS:
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            faults.append(f"`{key}` must be a string, got {value!r}")
        elif escaped and not _is_text(value):
            faults.append(f"`{key}` holds half a character (a lone surrogate escape): {value!r}")
    if "duration" in raw and not (_is_number(raw["duration"]) and raw["duration"] >= 0):
        faults.append(f"`duration` must be a number of seconds, got {raw['duration']!r}")
    if "quality" in raw and not _is_number(raw["quality"]):
        faults.append(f"`quality` must be a number, got {raw['quality']!r}")
    for key in ("id", "speaker"):
        if key in raw and (not isinstance(raw[key], (str, int)) or isinstance(raw[key], bool)):
            faults.append(f"`{key}` must be a string, got {raw[key]!r}")
    if not isinstance(raw.get("fields", {}), dict):
        faults.append(f"`fields` must be an object, got {_kind(raw['fields'])}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _media(raw: Mapping[str, Any], base: str, faults: list[str], *, needed: bool) -> dict[str, dict[str, Any]]:
    found: dict[str, Any] = {name: raw[name] for name in SHORT_INPUTS if name in raw}
    others = raw.get("media", {})
    if not isinstance(others, dict):
        faults.append(f"`media` must be an object of inputs by name, got {_kind(others)}")
    elif twice := [name for name in found if name in others]:
        faults += [f"`{name}` is given twice, by itself and under `media`; keep one" for name in twice]
    elif "text" in others:
        faults.append("`media` may not name an input 'text'; the text of an example is its key `text`")
    else:
        found.update(others)
    if not found and needed and "task" not in raw and not faults:
        faults.append("expected `audio` or `video` (with `text`), or `messages`; the line has none of them")
    return {name: _medium(value, name, f"`{name}`", base, faults) for name, value in found.items()}


def _medium(value: Any, kind: str, place: str, base: str, faults: list[str]) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        faults.append(f"{place} must be a path or an object with a `path`, got {_kind(value)}")
        return {}
    if not value.keys() <= _MEDIUM_SET:
        faults += [f"{place}: {fault}" for fault in mistyped(value, MEDIUM_KEYS)]
    item = {"type": kind, **{key: entry for key, entry in value.items() if entry is not None and key != "type"}}
    path = item.get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        faults.append(f"{place} needs a `path`, got {path!r}")
    else:
        item["path"] = os.path.join(base, os.path.expanduser(path) if path[0] == "~" else path)
    if item.keys() & PART_KEYS and (slip := locator_fault(item)):
        faults.append(f"{place}: {slip}")
    transcript = item.get("transcript")
    if transcript is not None and not (isinstance(transcript, str) and _is_text(transcript)):
        faults.append(f"{place}: `transcript` must be a string, got {transcript!r}")
    bad = [key for key in ("start", "end") if key in item and not (_is_number(item[key]) and item[key] >= 0)]
    faults += [f"{place}: `{key}` must be a number of seconds, got {item[key]!r}" for key in bad]
    if not bad and "end" in item and item["end"] <= item.get("start", 0):
        faults.append(f"{place}: `end` {item['end']!r} is not after `start` {item.get('start', 0)!r}")
    return item


def _messages(raw: Mapping[str, Any], base: str, faults: list[str]) -> list[Message]:
    faults += [f"`{key}` and `messages` exclude each other" for key in (*SHORT_INPUTS, "media", "text") if key in raw]
    turns = raw["messages"]
    if not isinstance(turns, list) or not turns:
        faults.append(f"`messages` must be a list of messages, got {turns!r}")
        return []
    built = []
    for number, turn in enumerate(turns):
        place = f"messages[{number}]"
        if not isinstance(turn, dict):
            faults.append(f"{place} must be an object with `role` and `content`, got {_kind(turn)}")
            continue
        if slips := mistyped(turn, MESSAGE_KEYS):
            faults += [f"{place}: {slip}" for slip in slips]
            continue
        if turn.get("role") not in ROLES:
            faults.append(f"{place}: `role` must be one of {', '.join(ROLES)}, got {turn.get('role')!r}")
        content = _content(turn.get("content"), place, base, faults)
        built.append(Message.model_construct(role=turn.get("role", "user"), content=content))
    return built


def _content(content: Any, place: str, base: str, faults: list[str]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        faults.append(f"{place}: `content` must be a string or a list of content items, got {_kind(content)}")
        return []
    built = []
    for number, item in enumerate(content):
        where = f"{place}.content[{number}]"
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(kind, str):
            faults.append(f'{where} must be an object with a `type` ("text" or the name of an input), got {item!r}')
        elif kind != "text":
            built.append(_medium(item, kind, where, base, faults))
        elif not isinstance(item.get("text"), str) or not _is_text(item["text"]):
            faults.append(f"{where} needs a `text`, got {item.get('text')!r}")
        else:
            faults += [f"{where}: {fault}" for fault in mistyped(item, TEXT_KEYS)] if len(item) > 2 else []
            built.append(item)
    return built
