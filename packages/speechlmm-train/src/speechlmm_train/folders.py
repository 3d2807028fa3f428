"""Folders that commands write to."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile

from speechlmm_core.checkpoint.atomic import UNFINISHED
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


def may_write(path: Path) -> bool:
    """Whether something could be written to a folder, which may still have to be made; touches nothing."""
    there = next(one for one in (path.absolute(), *path.absolute().parents) if os.path.exists(one))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def check_new_checkpoint(path: Path, what: str, *, overwrite: bool) -> None:
    """Checks that a checkpoint may be written to a folder, touching nothing.

    Args:
        path: The folder.
        what: How the user gave it.
        overwrite: Whether a checkpoint that is there may be replaced.

    Raises:
        ConfigError: It is a file, or holds something that may not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{what} {str(path)!r} is a file; expected a folder")
    if not path.is_dir() or all(entry.name == UNFINISHED for entry in path.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{what} {str(path)!r} is not empty; replace it with --overwrite, or choose another folder")
    if not (path / "config.json").is_file():
        raise ConfigError(f"{what} {str(path)!r} holds no checkpoint, and --overwrite replaces nothing else")
