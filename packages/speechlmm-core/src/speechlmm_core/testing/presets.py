"""The presets that are installed, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import yaml


def preset_files() -> dict[str, dict[str, Traversable]]:
    """Every preset's file, by part of the model (`audio_encoder`) and by name, of all installed distributions."""
    found: dict[str, dict[str, Traversable]] = {}
    for entry in sorted(entry_points(group="speechlmm.presets"), key=lambda entry: entry.name):
        for part in _children(files(entry.value) / "model"):
            for file in _children(part):
                name, _, suffix = file.name.rpartition(".")
                if suffix == "yaml":
                    found.setdefault(part.name, {})[name] = file
    return found


def installed_presets(part: str, prefix: str = "") -> dict[str, dict[str, Any]]:
    """The presets of a part of the model by name, as plain data.

    Args:
        part: `audio_encoder`, `text_decoder`, …
        prefix: Only those whose names begin so (`tiny_`, which need no checkpoint).
    """
    presets = preset_files().get(part, {})
    return {
        name: yaml.safe_load(presets[name].read_text(encoding="utf-8"))
        for name in sorted(presets)
        if name.startswith(prefix)
    }


def _children(folder: Traversable) -> Iterator[Traversable]:
    return folder.iterdir() if folder.is_dir() else iter(())
