"""Dataset specifications that packages ship beside their presets: `datasets/<name>.yaml`. Imports no torch."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from speechlmm_core.registry import describe

logger = logging.getLogger(__name__)
HOME = "DATA_HOME"
"""Variable that names the folder of all corpora."""
WITHOUT_HOME = "data"


@lru_cache(maxsize=1)
def shipped_specs() -> dict[str, Path]:
    """The shipped specifications by name."""
    found: dict[str, Path] = {}
    for entry in sorted(entry_points(group="speechlmm.presets"), key=lambda entry: entry.name):
        try:
            folder = Path(str(files(entry.value))) / "datasets"
            for file in sorted(folder.rglob("*.yaml")):
                found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        except Exception as exc:  # one broken plugin must not take the others along
            logger.warning("presets %r of %s are left out: %s", entry.value, describe(entry), exc)
    return found


def is_shipped(path: Path) -> bool:
    """Whether a specification is one of those."""
    return path in shipped_specs().values()


def base_of(path: Path, working: Path | None = None) -> Path:
    """The folder where relative paths in a specification start: its own, or, of a shipped one, the working folder.

    Args:
        path: The specification.
        working: The working folder; the process's by default.
    """
    return (working or Path.cwd()) if is_shipped(path) else path.parent


def home_of_corpora() -> Path:
    """`$DATA_HOME`, or `data` in the working folder."""
    return Path(os.environ.get(HOME) or WITHOUT_HOME)
