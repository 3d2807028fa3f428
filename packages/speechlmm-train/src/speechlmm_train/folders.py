"""Folders that commands write to."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from speechlmm_core.errors import ConfigError


def make_folder(path: Path, what: str) -> None:
    """Makes a folder, and makes sure that it can be written to.

    Args:
        path: The folder.
        what: How the user gave it.

    Raises:
        ConfigError: It cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as exc:
        raise ConfigError(f"{what} {str(path)!r} cannot be written to: {exc.strerror}") from exc
