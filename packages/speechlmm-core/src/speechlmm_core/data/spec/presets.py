"""Presets of corpora: YAML files `dataset/<name>.yaml` of the packages that announce presets. Imports no torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from speechlmm_core.data.spec.yaml_text import parse_yaml
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import describe

logger = logging.getLogger(__name__)


def plain_name(name: str) -> str:
    """A name without case and punctuation: `Spoken-SQuAD` and `spoken_squad` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@lru_cache(maxsize=1)
def preset_files() -> dict[str, Traversable]:
    """The files of all installed presets by name."""
    found: dict[str, Traversable] = {}
    for entry in sorted(entry_points(group="speechlmm.presets"), key=lambda entry: entry.name):
        try:
            folder = files(entry.value) / "dataset"
            if folder.is_dir():
                for file in sorted(folder.iterdir(), key=lambda file: file.name):
                    name, _, suffix = file.name.rpartition(".")
                    if suffix == "yaml":
                        found.setdefault(name, file)
        except Exception as exc:  # one broken plugin must not take the others along
            logger.warning("presets %r of %s are left out: %s", entry.value, describe(entry), exc)
    return found


@lru_cache(maxsize=256)
def read_preset(name: str) -> dict[str, Any]:
    """What a preset's file holds.

    Raises:
        ConfigError: It holds something else.
    """
    file = preset_files()[name]
    try:
        found = parse_yaml(file.read_bytes(), str(file))
    except (OSError, DataError) as exc:
        raise ConfigError(f"the preset {name!r} cannot be read: {exc}") from exc
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ConfigError(f"the preset {name!r} must be a mapping with a `type`, got {found!r:.80}")
    return found


@lru_cache(maxsize=256)
def find_preset(name: str) -> str | None:
    """The preset of a name or alias, in any case and punctuation; None if there is none."""
    wanted = plain_name(name)
    for one in preset_files():
        if plain_name(one) == wanted:
            return one
    for one in preset_files():
        aliases = read_preset(one).get("aliases") or []
        if any(plain_name(str(alias)) == wanted for alias in aliases):
            return one
    return None


def lay_over(below: Any, above: Any) -> Any:
    """Merges mappings, key by key; anything else above replaces what is below."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: lay_over(below[key], value) if key in below else value for key, value in above.items()}}
