"""Intent and slots as one line of text, and back. Imports no torch.

The line is JSON, ``{"intent": "alarm_set", "slots": [{"time": "five am"}, {"date": "friday"}]}``: slots in the order
of the words, one object each, for a request may fill a slot twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from speechlmm_core.errors import DataError

_ANNOTATED = re.compile(r"\[\s*([^\[\]:]+?)\s*:\s*([^\[\]]*?)\s*\]")
_NAMED = re.compile(r"[^\W\d]\s*:\s")
"""A slot without its brackets, `time: five`; times of day, `5 : 30`, are none."""
_BRACKETS = re.compile(r"[\[\]{}]")
TYPE_KEYS = ("type", "slot", "name", "label")
VALUE_KEYS = ("value", "filler", "text")


@dataclass(frozen=True)
class Frame:
    """What a request means."""

    intent: str
    slots: tuple[tuple[str, str], ...] = ()
    """(type, value) of each slot, in order."""


def intent_of(value: Any) -> str | None:
    """An intent as corpora give it: a name, or the number of a class; None where there is none.

    Raises:
        DataError: It is neither.
    """
    if value is None:
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"`fields.intent` must be a name, or the number of a class, got {value!r:.80}")
    return str(value).strip()


def write(frame: Frame) -> str:
    """The line that stands for a frame."""
    slots = [{kind: value} for kind, value in frame.slots]
    return json.dumps({"intent": frame.intent, "slots": slots}, ensure_ascii=False)


def parse(text: str) -> Frame | None:
    """The frame that an answer of a model stands for.

    What stands before the first brace and after its partner is passed over, and slots may come in any form that
    `slots_of` knows.

    Returns:
        The frame, None where the text holds none.
    """
    start = text.find("{")
    if start < 0:
        return None
    try:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(text[start:])[0]
        intent = found.get("intent")
        return Frame(intent.strip(), slots_of(found.get("slots"))) if isinstance(intent, str) else None
    except (ValueError, RecursionError):
        return None


def slots_of(value: Any) -> tuple[tuple[str, str], ...]:
    """Slots from the forms that corpora give them in.

    Args:
        value: A list of pairs, of ``{type: value}`` or of ``{"type": ..., "value": ...}`` (also called `slot`,
            `name`, `label` and `filler`, `text`); a mapping of types to a value or to several; either of them as
            JSON; a sentence with ``[type : value]`` in it, which without brackets fills no slot; or None.

    Raises:
        DataError: It is in none of these forms.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return _annotated(value)
    if isinstance(value, Mapping):
        found: list[tuple[str, str]] = []
        for kind, many in cast("Mapping[str, Any]", value).items():
            fillers = cast("list[Any]", many) if isinstance(many, list) else [many]
            found += [(str(kind).strip(), _text(one)) for one in fillers]
        return tuple(found)
    if isinstance(value, list | tuple):
        return tuple(_slot(one) for one in cast("Sequence[Any]", value))
    raise DataError(f"slots must be a list, a mapping or a sentence with [type : value] in it, got {value!r:.80}")


def _annotated(text: str) -> tuple[tuple[str, str], ...]:
    try:
        held: Any = json.loads(text)
    except (ValueError, RecursionError):
        held = None
    if isinstance(held, list | dict):
        return slots_of(held)
    found = tuple((kind, filler) for kind, filler in _ANNOTATED.findall(text))
    if _BRACKETS.search(_ANNOTATED.sub("", text)) or (not found and _NAMED.search(text)):
        raise DataError(f"slots in a sentence must be written [type : value], got {text!r:.80}")
    return found


def _slot(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        kind = next((given[key] for key in TYPE_KEYS if key in given), None)
        filler = next((given[key] for key in VALUE_KEYS if key in given), None)
        if len(given) == 1:
            ((kind, filler),) = given.items()
        if kind is not None and filler is not None:
            return str(kind).strip(), _text(filler)
    elif isinstance(value, list | tuple) and len(pair := cast("Sequence[Any]", value)) == 2:
        return str(pair[0]).strip(), _text(pair[1])
    raise DataError(f"a slot must be a pair, {{type: value}} or {{type, value}}, got {value!r:.80}")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"the value of a slot must be a text, got {value!r:.80}")
