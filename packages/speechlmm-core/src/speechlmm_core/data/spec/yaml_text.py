"""Reads YAML as its version 1.2 has it: `no` is Norwegian, `10:20` a slice, and no key is given twice.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from speechlmm_core.errors import DataError

MAX_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 64


_UNQUOTED = re.compile(r"""[\s,:\[{]([^\s"',:\[{]*\$\{[^{}]*\}[^\s"',\]}]*)""")
"""A variable without quotes, with what is written around it."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2's core schema; keys must be unlike each other.

    A mapping that is merged into others is copied each time, which multiplies where those are merged as well.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > MAX_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"merges (`<<`) make over {MAX_NODES} keys", node.start_mark
            )

    merged = 0

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        DataError: It cannot be read, is no YAML, or is too large or tangled to be a configuration.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = "it does not exist" if isinstance(exc, FileNotFoundError) else getattr(exc, "strerror", None) or exc
        raise DataError(f"cannot read {str(path)!r}: {reason}") from exc
    if len(raw) > MAX_BYTES:
        raise DataError(f"{path}: expected a specification, got a file of more than {MAX_BYTES >> 20} MiB")
    return parse_yaml(raw, str(path))


def parse_yaml(raw: bytes, name: str) -> Any:
    """What a YAML text holds.

    Raises:
        DataError: It is no YAML, or is too large or tangled to be a configuration.
    """
    try:
        found: Any = yaml.load(raw, _Loader)  # a safe loader
    except (yaml.YAMLError, ValueError) as exc:
        raise DataError(f"{name}: no valid YAML: {' '.join(str(exc).split())}{_hint(raw, exc)}") from exc
    except RecursionError as exc:
        raise DataError(f"{name}: no valid YAML: nested too deeply") from exc
    for count, depth in enumerate(_depths(found, 0, set())):
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise DataError(f"{name}: nested too deeply or too large; does an anchor contain itself?")
    return found


def _hint(raw: bytes, error: Exception) -> str:
    """What to do about a variable that stands without quotes between brackets, where its brace ends the text."""
    mark = getattr(error, "problem_mark", None)
    lines = raw.decode(errors="replace").splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if variable := _UNQUOTED.search(line):
        return f'; quote what has a variable between brackets ("{variable[1]}"), or write it on a line of its own'
    return ""


def _depths(node: Any, depth: int, above: set[int]) -> Iterator[int]:
    yield depth if id(node) not in above else MAX_DEPTH + 1
    if isinstance(node, dict | list) and depth <= MAX_DEPTH:
        above.add(id(node))
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _depths(inner, depth + 1, above)
        above.discard(id(node))
