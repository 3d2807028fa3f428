"""Finds the files of a corpus by a template whose placeholders tell what they hold. Imports no torch.

In ``clips/{language}/{partition}.tsv`` a placeholder that the selection has a value for stands for it; any other fits
every name, and the file's own name then tells its value. ``*`` fits anything in a name, and ``**`` any folders.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection

TOKENS = re.compile(r"\{(?P<name>[^{}]*)\}|(?P<folders>\*\*/)|(?P<any>\*+)|(?P<one>\?)|(?P<text>[^{*?]+|.)")
LANGUAGES = ("language", "source_language", "target_language")


@dataclass(frozen=True)
class Names:
    """How a corpus writes partitions and languages, where it writes them in its own way: its name by ours."""

    partitions: Mapping[str, str] = field(default_factory=dict[str, str])
    languages: Mapping[str, str] = field(default_factory=dict[str, str])

    def written(self, placeholder: str, value: str) -> str:
        """The corpus' name."""
        return self._of(placeholder).get(value, value)

    def ours(self, placeholder: str, value: str) -> str:
        """Our name."""
        return next((ours for ours, theirs in self._of(placeholder).items() if theirs == value), value)

    def _of(self, placeholder: str) -> Mapping[str, str]:
        if placeholder == "partition":
            return self.partitions
        return self.languages if placeholder in LANGUAGES else {}


@dataclass(frozen=True)
class FoundFile:
    """A file that fits a template."""

    path: Path
    """The file."""
    told: Mapping[str, str]
    """Values of the template's placeholders; `language` is the source language."""


def find_files(root: Path, templates: Iterable[str], selection: Selection, names: Names) -> list[FoundFile]:
    """The files below ``root`` that fit a template and the selection, in the order of their names.

    Raises:
        DataError: A template is none, or no file fits any.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"the corpus' path {str(root)!r} {reason}; check `path`")
    patterns = [Pattern(template, chosen(selection), names) for template in templates]
    found = {one.path: one for pattern in patterns for one in pattern.files(root)}
    if not found:
        free = [Pattern(pattern.template, {}, names) for pattern in patterns]
        others = sorted({one.told["partition"] for one in _all(free, root) if "partition" in one.told})
        there = f"; partitions that are there: {', '.join(others)}" if others else ""
        looked = " or ".join(repr(pattern.glob) for pattern in patterns)
        raise DataError(f"{root}: no file fits {looked}{there}; check `path` and `files`")
    return [found[path] for path in sorted(found)]


def find_partitions(root: Path, templates: Iterable[str], names: Names) -> list[str]:
    """Values of ``{partition}`` in the files that are there."""
    patterns = [Pattern(template, {}, names) for template in templates if "{partition}" in template]
    return sorted({one.told["partition"] for one in _all(patterns, root)}) if root.is_dir() else []


def chosen(selection: Selection) -> dict[str, str]:
    """What a selection says about placeholders."""
    values = {
        "partition": selection.partition,
        "language": selection.source_language,
        "source_language": selection.source_language,
        "target_language": selection.target_language,
    }
    return {name: value for name, value in values.items() if value is not None}


class Pattern:
    """A template, with values for some of its placeholders.

    Raises:
        DataError: It is no template, or leaves the corpus' folder.
    """

    def __init__(self, template: str, values: Mapping[str, str], names: Names) -> None:
        self.template, self.names, self.values = template, names, values
        if template.startswith(("/", "~")) or ".." in template.split("/"):
            raise DataError(f"`files` {template!r} must lie below the corpus' `path`")
        expression = ""
        self.glob = ""
        seen: set[str] = set()
        for token in TOKENS.finditer(template):
            name = token["name"]
            if name is None:
                part, fits = _plain(token)
            elif not name.isidentifier():
                raise DataError(f"`files` {template!r}: {{{name}}} is no placeholder; write a name into the braces")
            elif name in values:
                written = names.written(name, values[name])
                part, fits = glob.escape(written), re.escape(written)
            else:
                part, fits = "*", f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
                seen.add(name)
            self.glob += part
            expression += fits
        self._fits = re.compile(expression, re.DOTALL)

    def files(self, root: Path) -> list[FoundFile]:
        """The files that fit."""
        found: list[FoundFile] = []
        for path in root.glob(self.glob):
            match = self._fits.fullmatch(path.relative_to(root).as_posix())
            if match is not None and path.is_file():
                told = {name: self.names.ours(name, value) for name, value in match.groupdict().items()}
                found.append(FoundFile(path, _with_languages({**self._given(), **told})))
        return found

    def _given(self) -> dict[str, str]:
        return {name: value for name, value in self.values.items() if f"{{{name}}}" in self.template}


def _plain(token: re.Match[str]) -> tuple[str, str]:
    """A part of a template without a placeholder: for globbing, and as a regular expression."""
    if token["folders"] is not None:
        return "**/", r"(?:[^/]+/)*"
    if token["any"] is not None:
        return "*", "[^/]*"
    return ("?", "[^/]") if token["one"] is not None else (glob.escape(token["text"]), re.escape(token["text"]))


def _with_languages(told: dict[str, str]) -> dict[str, str]:
    if "language" in told:
        told.setdefault("source_language", told["language"])
    return told


def _all(patterns: Iterable[Pattern], root: Path) -> list[FoundFile]:
    return [one for pattern in patterns for one in pattern.files(root)]
