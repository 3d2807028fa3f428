"""Column mapping: which column of a corpus fills which field of an example. Imports no torch.

A mapping is ``{field: source}``. Fields are those of `Example` (`id`, `text`, `transcript`, `source_text`,
`instruction`, `source_language`, `target_language`, `language`, `speaker`, `quality`, `duration`, `messages`), inputs
(`audio`, `video`, `media.<input>`), what belongs to an input (`audio.start`, `audio.end`, `audio.duration`: seconds;
`audio.transcript`), and `fields.<name>` for what only a task knows. Sources are

- a column, or a path into nested ones (`answers.text.0`),
- a template of columns, or paths into nested ones, in braces (`"{speaker}/{id}.flac"`), which may also name what the
  path of the file or the selection tells (`{partition}`, `{source_language}`, `{target_language}`),
- a constant that begins with an equals sign (`=en`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_core.registry import nearest

TEXTS = ("text", "transcript", "source_text", "instruction", "source_language", "target_language", "speaker")
NUMBERS = ("quality", "duration")
SCALARS = ("id", "language", "messages", *TEXTS, *NUMBERS)
PARTS = ("start", "end", "duration", "transcript")
SHORT_INPUTS = ("audio", "video")

Record = Mapping[str, Any]
_ABSENT = object()


class ColumnMap:
    """A compiled mapping.

    Args:
        columns: Source by field; None takes a field out that a preset maps.
        media_root: Folder where relative paths of media start.
        constants: What the path or the selection tells, for templates and as fields without a mapping.

    Raises:
        DataError: A field does not exist, or a template is none.
    """

    def __init__(
        self, columns: Mapping[str, str | None], *, media_root: str = "", constants: Mapping[str, str] | None = None
    ) -> None:
        self.columns = {field: source for field, source in columns.items() if source is not None}
        self.media_root = media_root
        self.constants = dict(constants or {})
        self._templates: dict[str, list[tuple[str, str | None]]] = {}
        for field, source in self.columns.items():
            check_field(field)
            if "{" in source and not source.startswith("="):
                self._templates[field] = _template_parts(field, source)

    def example(self, record: Record, number: int, *, task: str) -> Example:
        """Makes the example of a record.

        Args:
            record: Values by column.
            number: Counted from 1; the example's name where no column gives one.
            task: Name of its task.

        Raises:
            DataError: A column that is mapped is missing from the record, or holds what its field cannot.
        """
        values = {field: self.value(field, record) for field in self.columns}
        fields = {field.removeprefix("fields."): v for field, v in values.items() if field.startswith("fields.")}
        language = values.get("language", values.get("source_language"))
        return Example.model_construct(
            id=str(number) if values.get("id") is None else str(values["id"]),
            task=task,
            media=self._media(values),
            text=_text("text", values.get("text")),
            transcript=_text("transcript", values.get("transcript")),
            source_text=_text("source_text", values.get("source_text")),
            instruction=_text("instruction", values.get("instruction")),
            speaker=_text("speaker", values.get("speaker")),
            source_language=_text("language", language) or self.constants.get("source_language"),
            target_language=_text("target_language", values.get("target_language"))
            or self.constants.get("target_language"),
            quality=_number("quality", values.get("quality")),
            duration=_number("duration", values.get("duration")),
            fields={name: value for name, value in fields.items() if value is not None},
            messages=values.get("messages"),
        )

    def value(self, field: str, record: Record) -> Any:
        """What a record gives for a field.

        Raises:
            DataError: There is no such column.
        """
        source = self.columns[field]
        if source.startswith("="):
            return source[1:]
        if field not in self._templates:
            return lookup(record, source, field)
        text = ""
        for literal, name in self._templates[field]:
            text += literal
            if name is not None:
                value = self._named(name, record, field)
                if value is None:
                    return None
                text += str(value)
        return text

    def missing(self, available: Sequence[str]) -> list[str]:
        """Columns that are mapped and not among those there are, as lines for the user."""
        lines: list[str] = []
        for field, source in self.columns.items():
            if source.startswith("="):
                continue
            parts = self._templates.get(field, [("", source)])
            for name in [name for _, name in parts if name is not None]:
                top = name if name in available else name.partition(".")[0]
                if top not in available and name not in self.constants:
                    near = nearest(name, list(available))
                    lines.append(f"columns.{field}: there is no column {name!r}{near}")
        return lines

    def _named(self, name: str, record: Record, field: str) -> Any:
        return record[name] if name in record else self.constants.get(name) or lookup(record, name, field)

    def _media(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        media: dict[str, dict[str, Any]] = {}
        for field in self.columns:
            name = field.removeprefix("media.")
            if (field not in SHORT_INPUTS and name == field) or values[field] is None:
                continue
            item = {"type": name, **self._source(values[field], field)}
            parts = {part: values.get(f"{field}.{part}") for part in PARTS}
            for part in ("start", "end"):
                if parts[part] is not None:
                    item[part] = _number(f"{field}.{part}", parts[part])
            if parts["duration"] is not None and "end" not in item:
                length = _number(f"{field}.duration", parts["duration"]) or 0.0
                item["end"] = round(item.get("start", 0.0) + length, 6)
            if parts["transcript"] is not None:
                item["transcript"] = _text(f"{field}.transcript", parts["transcript"])
            media[name] = item
        return media

    def _source(self, value: Any, field: str) -> dict[str, Any]:
        """The content item's keys that tell where its data are."""
        if isinstance(value, str | os.PathLike):
            path = os.path.expanduser(os.fspath(value))
            return {"path": os.path.join(self.media_root, path)}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value)}
        if isinstance(value, Mapping):
            kept = {key: part for key, part in value.items() if part is not None and key != "type"}
            if kept.get("bytes") is not None:
                return {"bytes": bytes(kept["bytes"])}
            if "path" in kept:
                return {**kept, "path": os.path.join(self.media_root, str(kept["path"]))}
            if "array" in kept:
                return kept
        raise DataError(f"`{field}` must be a path, the bytes of a file, or an object with a `path`, got {value!r:.80}")


def lookup(record: Record, source: str, field: str) -> Any:
    """The value of a column, or of a path into nested ones.

    Raises:
        DataError: There is no such column.
    """
    if source in record:
        return record[source]
    value: Any = record
    for step in source.split("."):
        if isinstance(value, Mapping):
            value = value.get(step, _ABSENT)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        elif value is not None:
            value = _ABSENT
        if value is _ABSENT:
            near = nearest(source, [str(key) for key in record])
            raise DataError(f"`{field}`: there is no column {source!r}{near} (columns: {', '.join(map(str, record))})")
    return value


def check_field(field: str) -> None:
    """Makes sure that a mapping's field is one.

    Raises:
        DataError: It is not.
    """
    head, _, part = field.partition(".")
    if field in SCALARS or field in SHORT_INPUTS or (head in ("media", "fields") and part):
        return
    if head in SHORT_INPUTS and part in PARTS:
        return
    known = [*SCALARS, *SHORT_INPUTS, *(f"audio.{part}" for part in PARTS)]
    raise DataError(
        f"columns: an example has no field {field!r}{nearest(field, known)} "
        f"(fields: {', '.join(known)}, media.<input>, fields.<name>)"
    )


def _template_parts(field: str, template: str) -> list[tuple[str, str | None]]:
    """Texts of a template, each with the column that follows it."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as exc:
        raise DataError(f"columns.{field}: {template!r} is no template: {exc}") from exc
    for _, name, form, conversion in parts:
        if name == "":
            raise DataError(f"columns.{field}: {template!r} has empty braces; write a column's name into them")
        if form or conversion:
            written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise DataError(
                f"columns.{field}: {template!r} has a format in {written!r}; braces hold a column's name and no more"
            )
    return [(literal, name) for literal, name, _, _ in parts]


def _text(field: str, value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"`{field}` must be a text, got {value!r:.80}")


def _number(field: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError) as exc:
        raise DataError(f"`{field}` must be a number, got {value!r:.80}") from exc
    if not math.isfinite(found):
        raise DataError(f"`{field}` must be a finite number, got {value!r}")
    return found
