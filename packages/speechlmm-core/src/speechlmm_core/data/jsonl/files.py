"""Which manifests a path stands for: a file, a folder of partitions, or a template. Imports no torch.

In ``{partition}/{language}.jsonl`` a placeholder that the selection has a value for stands for it; any other fits
every name, which then tells its value. In a folder, each partition is a file ``<partition>.jsonl``.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_core.registry import nearest

NAMES = {"partition": "partition", "language": "source_language"}
NAMES |= {name: name for name in ("source_language", "target_language")}
"""Placeholders, and what they tell."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Manifest:
    """A manifest with what its path tells."""

    path: Path
    """The file."""
    told: Mapping[str, str]
    """`partition`, `source_language` and `target_language`, where the path tells them."""


def find_manifests(path: Path, selection: Selection = EVERYTHING) -> list[Manifest]:
    """The manifests of a selection.

    Raises:
        DataError: The template is none, or nothing fits.
    """
    template = _template(path)
    if template is None:
        return [Manifest(path, {})]
    values = {name: getattr(selection, field) for name, field in NAMES.items()}
    found = _fitting(template, {name: value for name, value in values.items() if value is not None})
    if not found:
        others = partitions_of(path)
        there = f" (partitions that are there: {', '.join(others)})" if others else ""
        raise DataError(f"no manifest fits {template!r}{there}; check the `path`")
    return found


def partitions_of(path: Path) -> list[str]:
    """Partitions that the path tells apart, in alphabetical order."""
    template = _template(path)
    if template is None or "{partition}" not in template:
        return []
    return sorted({one.told["partition"] for one in _fitting(template, {})})


def _template(path: Path) -> str | None:
    text = str(path)
    if not _PLACEHOLDER.search(text):
        try:
            return f"{glob.escape(text)}/{{partition}}.jsonl" if path.is_dir() else None
        except (OSError, ValueError):
            return None
    for name in _PLACEHOLDER.findall(text):
        if name not in NAMES:
            raise DataError(f"path {text!r}: unknown placeholder {{{name}}}{nearest(name, list(NAMES))} ({_known()})")
    return _escaped(text)


def _known() -> str:
    return ", ".join(f"{{{name}}}" for name in NAMES)


def _escaped(text: str) -> str:
    """Escapes what stands between placeholders."""
    parts = re.split(r"(\{[^{}]*\})", text)
    return "".join(part if at % 2 else glob.escape(part) for at, part in enumerate(parts))


def _fitting(template: str, values: Mapping[str, str]) -> list[Manifest]:
    pattern = expression = ""
    seen: set[str] = set()
    for at, part in enumerate(re.split(r"\{([^{}]*)\}", template)):
        if not at % 2:
            pattern += part
            expression += re.escape(_unescaped(part))
            continue
        field = NAMES[part]
        if part in values:
            pattern += glob.escape(values[part])
            expression += re.escape(values[part])
        else:
            pattern += "*"
            expression += f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+?)"
            seen.add(field)
    fits = re.compile(expression, re.DOTALL)
    fixed = {NAMES[name]: value for name, value in values.items() if f"{{{name}}}" in template}
    found: list[Manifest] = []
    for name in sorted(glob.glob(pattern)):
        match = fits.fullmatch(name)
        if match and Path(name).is_file():
            found.append(Manifest(Path(name), {**fixed, **match.groupdict()}))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\[([*?[])\]", r"\1", text)
