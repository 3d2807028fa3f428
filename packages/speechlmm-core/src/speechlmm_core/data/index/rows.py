"""Examples as lines of JSON, and back. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example

_DEFAULTS = {name: field.default for name, field in Example.model_fields.items() if name != "task_config"}


def encode_example(example: Example) -> bytes:
    """The line of an example, without what has its default value.

    Raises:
        TypeError: The example holds what JSON cannot, such as the bytes of a file.
        ValueError: It holds itself.
    """
    found: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(example, name)
        if value is default or value == default:
            continue
        if name == "messages":
            value = [[message.role, message.content] for message in value]
        elif name == "media":
            value = {kind: _without_type(kind, item) for kind, item in value.items()}
        found[name] = value
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass") + b"\n"


def decode_example(line: bytes) -> Example:
    """The example of a line.

    Raises:
        ValueError: It is none.
    """
    found = json.loads(line)
    if not isinstance(found, dict) or not found.keys() <= _DEFAULTS.keys():
        raise ValueError("the line is no example")
    if "messages" in found:
        found["messages"] = [Message.model_construct(role=role, content=items) for role, items in found["messages"]]
    if "media" in found:
        found["media"] = {kind: {"type": kind, **item} for kind, item in found["media"].items()}
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


def _without_type(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "type" or value != kind}
