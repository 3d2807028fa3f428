"""Overrides as the user wrote them: checked against the tree, and made ready for Hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.composing.tree import ADJUSTMENTS, LAUNCHER, Tree

SECTIONS: dict[str, tuple[type, str]] = {
    "model": (dict, "model/<part>=<preset> or model.<key>=<value>"),
    "data": (dict, "data.<key>=<value>"),
    "training": (dict, "training.<key>=<value>"),
    "stages": (list, "stages=[{name: <name>, max_steps: <number>}, ...]"),
}
"""What a run's configuration consists of: the sections' types, and how they are set."""


_OF_LAUNCHER = LAUNCHER.replace("/", ".")


@dataclass(frozen=True)
class Ready:
    """Overrides that Hydra can take."""

    texts: list[str]
    adjustments: list[str] | None
    """Names of adjustments; None where the command line names none."""
    given: dict[str, str]
    """The words that give a key a value, by key."""


def ready(overrides: list[str], tree: Tree) -> Ready:
    """Checks overrides and lets their keys be new where no file names them.

    Raises:
        ConfigError: The first that is wrong.
    """
    texts: list[str] = []
    adjustments: list[str] | None = None
    given: dict[str, str] = {}
    for said in overrides:
        override = parse(said)
        text = override.input_line or said
        if override.is_sweep_override():
            raise ConfigError(
                f"{text!r} gives several values to one key; write a list as key=[a,b], or run all of them with "
                "--multirun"
            )
        if override.key_or_group == ADJUSTMENTS:
            adjustments = names_of_adjustments(text, None if override.is_delete() else override.value())
        else:
            texts.append(_checked(text, override, tree))
            for key, value in _values(override.key_or_group, None if override.is_delete() else override.value()):
                given.pop(key, None)
                if value not in (None, []):
                    given[key] = text
    return Ready([text for text in texts if text], adjustments, given)


def parse(text: str) -> Override:
    """One override. A launcher's value that Hydra cannot read is taken as it is: SLURM writes nodes as `n[01-04]`.

    Raises:
        ConfigError: It is none.
    """
    expected = f"{text!r} is not an override; expected key=value, +key=value or ~key"
    key, assigned, value = text.partition("=")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as exc:
        if assigned and key.lstrip("+").startswith(f"{_OF_LAUNCHER}.") and value[:1] not in ("[", "{", "'", '"'):
            # Backslashes mean something before a quotation mark alone.
            escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
            return parse(f"{key}='{escaped}'")
        if assigned:
            expected += f"; a value with such signs has to be quoted: \"{key}='...'\""
        raise ConfigError(expected) from exc
    if not override.key_or_group:
        raise ConfigError(expected)
    return override


def _values(key: str, value: object) -> Iterator[tuple[str, object]]:
    """The values that an override gives, by key; those of a mapping one by one."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _values(f"{key}.{name}", one)
    else:
        yield key, value


def names_of_adjustments(place: str, value: object) -> list[str]:
    """The names in ``adjustments``, which is a list, one name, or nothing.

    Raises:
        ConfigError: It is something else.
    """
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{place!r}: expected names of adjustments, as in adjustments=[zero3_issue]")
    return [str(name) for name in names]


def products(overrides: list[str], tree: Tree) -> list[tuple[list[str], list[str]]]:
    """All combinations of the values of overrides that have several, the last one varying fastest.

    Returns:
        For each combination all overrides, and those alone that vary.

    Raises:
        ConfigError: One is wrong, or gives no value.
    """
    columns: list[tuple[list[str], bool]] = []
    for text in overrides:
        override = parse(text)
        if not override.is_sweep_override():
            columns.append(([text], False))
            continue
        key = override.get_key_element()
        value = override.value()
        if isinstance(value, Glob):
            values = value.filter(tree.options(override.key_or_group))
        else:
            values = list(override.sweep_string_iterator())
        if not values:
            raise ConfigError(f"{text!r} gives no value to run with")
        columns.append(([f"{key}={one}" for one in values], True))
    found: list[tuple[list[str], list[str]]] = []
    for row in product(*(values for values, _ in columns)):
        found.append((list(row), [text for text, (_, varies) in zip(row, columns, strict=True) if varies]))
    return found


def _checked(text: str, override: Override, tree: Tree) -> str:
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return _checked_launcher(text, override, tree)
    if key in SECTIONS and not (override.is_delete() or isinstance(override.value(), SECTIONS[key][0])):
        raise ConfigError(f"{text!r}: `{key}` is a section; expected {SECTIONS[key][1]}")
    if key in SECTIONS:
        return f"++{text}" if text[0] not in "+~" else text
    if tree.is_group(key):
        _check_option(override, key, tree)
        return text
    if "/" in key:
        groups = [*(f"model/{name}" for name in tree.groups("model")), LAUNCHER]
        raise ConfigError(f"unknown group {key!r}{nearest(key, groups)} (available: {', '.join(groups)})")
    return f"++{text}" if override.type is not None and text[0] not in "+~" else text


def _checked_launcher(text: str, override: Override, tree: Tree) -> str:
    key = override.key_or_group
    if key == LAUNCHER:
        _check_option(override, key, tree)
        return text
    if key.startswith(f"{_OF_LAUNCHER}."):
        return f"++{text}" if text[0] not in "+~" else text
    raise ConfigError(
        f"{text!r}: of Hydra's own settings only hydra/launcher=<preset> and hydra.launcher.<key>=<value> are taken; "
        "where a run writes to is training.output_dir"
    )


def _check_option(override: Override, group: str, tree: Tree) -> None:
    value = None if override.is_delete() else override.value()
    for name in value if isinstance(value, list) else [value]:
        options = tree.options(group)
        if isinstance(name, str) and name not in options:
            raise ConfigError(
                f"unknown preset {group}={name}{nearest(name, options)} (available: {', '.join(options)})"
            )
