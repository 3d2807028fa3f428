"""Examples as lines of JSON, and back. Imports no torch.

A line is a list of an example's fields in a fixed order, without those at the end that have their default value. A
medium that is no more than a file is its path, relative to the root of the part's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example

FIELDS = (
    *("id", "media", "text", "source_language", "target_language", "task", "transcript", "speaker", "duration"),
    *("fields", "quality", "source_text", "instruction", "messages"),
)
"""The order of the fields; it is part of the format."""
_DEFAULTS = tuple(Example.model_fields[name].default for name in FIELDS)


def encode_example(example: Example, root: str = "") -> bytes:
    """The line of an example.

    Args:
        example: The example.
        root: Beginning of paths, up to a slash, that is left out.

    Raises:
        TypeError: The example holds what JSON cannot, such as the bytes of a file.
        ValueError: It holds itself.
    """
    found: list[Any] = []
    for name, default in zip(FIELDS, _DEFAULTS, strict=True):
        value = getattr(example, name)
        if value is default or value == default:
            found.append(None)
        elif name == "messages":
            found.append([[message.role, message.content] for message in value])
        elif name == "media":
            found.append({kind: _short(kind, item, root) for kind, item in value.items()})
        else:
            found.append(value)
    while found and found[-1] is None:
        found.pop()
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass") + b"\n"


def decode_example(line: bytes, root: str = "") -> Example:
    """The example of a line.

    Raises:
        ValueError: It is none.
    """
    values = json.loads(line)
    if not isinstance(values, list) or len(values) > len(FIELDS):
        raise ValueError("the line is no example")
    found = {name: value for name, value in zip(FIELDS, values, strict=False) if value is not None}
    if "messages" in found:
        found["messages"] = [Message.model_construct(role=role, content=items) for role, items in found["messages"]]
    if "media" in found:
        found["media"] = {kind: _long(kind, item, root) for kind, item in found["media"].items()}
    return Example.model_construct(**{"media": {}, "fields": {}, **found})


def media_of(example: Example) -> list[dict[str, Any]]:
    """The media of an example, in the order in which the index has them."""
    if example.messages is not None:
        return [item for message in example.messages for item in message.media]
    return list(example.media.values())


def answer_of(example: Example) -> str | None:
    """The text that is supervised: of a conversation, that of its last answer."""
    if example.messages is None:
        return example.text
    for message in reversed(example.messages):
        if message.role == "assistant":
            return "".join(item["text"] for item in message.content if item["type"] == "text")
    return None


def _short(kind: str, item: Mapping[str, Any], root: str) -> Any:
    """A content item, without its type where that is its name."""
    if item.get("type") != kind:
        return dict(item)
    path = item.get("path")
    if len(item) == 2 and isinstance(path, str) and path.startswith(root):
        return path[len(root) :]
    return {key: value for key, value in item.items() if key != "type"}


def _long(kind: str, item: Any, root: str) -> dict[str, Any]:
    return {"type": kind, "path": root + item} if isinstance(item, str) else {"type": kind, **item}
