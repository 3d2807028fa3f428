"""Where the files of a corpus lie: templates of paths, and what a path tells. Imports no torch.

A template such as ``mls_{source_language}/{partition}/transcripts.txt`` is both a search (what the selection names is
filled in, the rest is found) and a reading: what stood in each brace is told by the path.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_core.registry import nearest

LANGUAGES = ("source_language", "target_language")
TOLD = ("partition", *LANGUAGES)
"""What a path tells of the part of the corpus; other names are columns only."""
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a corpus."""

    path: str
    """Its path, absolute or as the corpus' root was given."""
    told: Mapping[str, str]
    """What its path says, by name; languages as codes."""

    @property
    def folder(self) -> str:
        """Its folder."""
        return os.path.dirname(self.path)


class Layout:
    """Templates of one kind of file, relative to the corpus' root.

    Args:
        templates: Paths with names in braces, and with ``*`` for what does not matter.
        language_names: What folders call a language, by code; where any are given, others are no languages.

    Raises:
        DataError: A template leaves the corpus' folder.
    """

    def __init__(self, templates: Sequence[str], language_names: Mapping[str, str] | None = None) -> None:
        for template in templates:
            if "\0" in template or template.startswith(("/", "~")) or ".." in template.split("/"):
                raise DataError(f"`files` {template!r} must lie below the corpus' `path`")
        self.templates = tuple(templates)
        self.names = dict(language_names or {})
        self.codes = {name: code for code, name in self.names.items()}

    def find(self, root: Path, selection: Selection = EVERYTHING) -> list[Found]:
        """The files of a part of the corpus, in order of their paths.

        Raises:
            DataError: There are none; the message names what is missing, and what there is instead.
        """
        found = self.search(root, selection)
        if not found:
            raise DataError(self._missing(root, selection))
        return found

    def values(self, root: Path, name: str) -> list[str]:
        """What stands in a brace over all files, sorted: the partitions that are there.

        Of each folder that the brace leads to, one file is looked for: a partition may have a hundred thousand.
        """
        found: set[str] = set()
        for template in self.templates:
            if f"{{{name}}}" not in template:
                continue
            parts = template.split("/")
            depth = next(at for at, part in enumerate(parts, 1) if f"{{{name}}}" in part)
            reading = _reading(template, {})
            for head in glob.glob(self._pattern("/".join(parts[:depth]), {}), root_dir=root):
                rest = self._pattern("/".join(["", *parts[depth:]]), {}) if depth < len(parts) else ""
                for path in glob.iglob(glob.escape(head) + rest, root_dir=root):
                    told = reading.fullmatch(path)
                    if told and (codes := self._codes(told.groupdict())) is not None:
                        found.add(codes[name])
                        break
        return sorted(found)

    def search(self, root: Path, selection: Selection = EVERYTHING) -> list[Found]:
        """The files of a part of the corpus, in order of their paths; empty where there are none."""
        wanted: dict[str, str] = {}
        for name in TOLD:
            value: str | None = getattr(selection, name)
            if value is not None:
                wanted[name] = self.names.get(value, value) if name in LANGUAGES else value
        found: dict[str, Found] = {}
        shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}  # one for all files of a folder
        for template in self.templates:
            reading = _reading(template, wanted)
            for name in glob.glob(self._pattern(template, wanted), root_dir=root):
                told = reading.fullmatch(name)
                if told and (codes := self._codes(told.groupdict())) is not None:
                    path = os.path.join(root, name)
                    found.setdefault(path, Found(path, shared.setdefault(tuple(codes.items()), codes)))
        return [found[path] for path in sorted(found)]

    def _pattern(self, template: str, wanted: Mapping[str, str]) -> str:
        """A template for `glob`; brackets in it mean themselves."""
        plain = template.replace("[", "[[]")
        return _FIELD.sub(lambda match: glob.escape(wanted[match[1]]) if match[1] in wanted else "*", plain)

    def _codes(self, told: Mapping[str, str]) -> dict[str, str] | None:
        """What a path tells, with languages as codes; None where a name of a language is none."""
        codes = dict(told)
        for name in LANGUAGES:
            if name in codes and self.names:
                if codes[name] not in self.codes:
                    return None
                codes[name] = self.codes[codes[name]]
        return codes

    def _missing(self, root: Path, selection: Selection) -> str:
        if not root.is_dir():
            return f"there is no folder {str(root)!r}; set `path` to where the corpus was unpacked"
        expected = " or ".join(self.templates)
        if not self.search(root):
            return f"{str(root)!r} holds no {expected}; set `path` to where the corpus was unpacked"
        for name in TOLD:
            value = getattr(selection, name)
            there = self.values(root, name)
            if value is not None and there and value not in there:
                kind = name.replace("_", " ")
                return f"{str(root)!r} has no {kind} {value!r}{nearest(value, there)} (there are: {', '.join(there)})"
        asked = [f"{name} {value!r}" for name in TOLD if (value := getattr(selection, name))]
        return f"{str(root)!r} has no {expected} for {', '.join(asked)} together"


def _reading(template: str, wanted: Mapping[str, str]) -> re.Pattern[str]:
    """A template as an expression, whose groups are what the braces stand for."""
    seen: set[str] = set()
    parts: list[str] = []
    for part in re.split(r"(\{[A-Za-z_][A-Za-z0-9_]*\}|\*)", template):
        if part == "*":
            parts.append("[^/]*")
        elif not (match := _FIELD.fullmatch(part)):
            parts.append(re.escape(part))
        elif match[1] in seen:
            parts.append(f"(?P={match[1]})")
        else:
            seen.add(match[1])
            value = wanted.get(match[1])
            parts.append(f"(?P<{match[1]}>{'[^/]+?' if value is None else re.escape(value)})")
    return re.compile("".join(parts))


def fill(field: str, template: str, values: Mapping[str, object]) -> str:
    """A template with values in its braces.

    Args:
        field: The configuration's field that holds it, for messages.
        template: The template.
        values: What there is to fill in.

    Raises:
        DataError: It names something else.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = ", ".join(values)
            raise DataError(
                f"`{field}` {template!r}: there is no {match[0]}{nearest(match[1], list(values))} ({known})"
            )
        return str(values[match[1]])

    return _FIELD.sub(value, template)
